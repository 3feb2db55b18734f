//! Model bundles, samples to tensors, ONNX Runtime.
//!
//! The way of a sample: [`ContentType`] says what its bytes are, the model's [`Bundle`] says what the model
//! wants to see, [`Model::tensor`] makes the one into the other, [`Model::run`] gives the raw outputs and
//! [`Task::read`] says what they mean. Whether that answer stands is up to `hedge-core`; threads, queues and deadlines
//! are up to whoever owns the [`Model`].

pub mod bundle;
pub mod features;
mod inside;
pub mod model;
pub mod runtime;
pub mod signing;
pub mod task;
mod text;

pub use bundle::{Bundle, BundleError};
pub use features::{
    ContentType, FeatureError, Picture, Region, StageTimes, Tensor, cropped, drawn, is_heading, is_heading_again,
    pixels_only, preview, thumbnail, upright_size, wav, what_else,
};
pub use model::{Model, ModelError, SessionOptions};
pub use runtime::{Provider, ProviderChoice, RunsOn, Runtime, RuntimeError, probe_if_asked};
pub use task::{Task, Tensors, Unusable};
pub use text::{read_pem, read_secret, read_text};
