//! stub
use serde::Deserialize;
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Region {}
#[derive(Debug, Clone, PartialEq)]
pub enum ContentType {
    Jpeg,
    Png,
    Tensor { shape: Vec<usize> },
}
