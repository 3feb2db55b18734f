//! Raw tensors as applications send them.

use hedge_proto::Rect;

use super::FeatureError;

/// Numbers with a shape, last dimension fastest.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
    /// Where its edges lie in the picture it was made of: beyond the picture's own if it was padded.
    pub frame: Rect,
}

impl Tensor {
    /// Of no picture.
    #[must_use]
    pub fn new(shape: Vec<usize>, data: Vec<f32>) -> Self {
        Self { shape, data, frame: Rect::WHOLE }
    }

    /// Reads little-endian f32 values that must have exactly the model's shape; a missing leading 1 is added.
    pub(super) fn read(shape: &[usize], bytes: &[u8], expected: &[usize]) -> Result<Self, FeatureError> {
        let without_batch = expected.get(1..).unwrap_or_default();
        if shape != expected && shape != without_batch {
            return Err(FeatureError::WrongShape { shape: shape.to_vec(), expected: expected.to_vec() });
        }
        // The model's own shape is bounded by TENSOR_VALUES_MAX, so this cannot overflow.
        let expected_bytes = expected.iter().product::<usize>() * size_of::<f32>();
        if bytes.len() != expected_bytes {
            return Err(FeatureError::WrongLength { bytes: bytes.len(), expected: expected_bytes });
        }
        let (values, _) = bytes.as_chunks::<4>();
        let data: Vec<f32> = values.iter().map(|value| f32::from_le_bytes(*value)).collect();
        match data.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(FeatureError::NotFinite { index }),
            None => Ok(Self::new(expected.to_vec(), data)),
        }
    }

    /// The values as they travel: little-endian f32.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.data.iter().flat_map(|value| value.to_le_bytes()).collect()
    }
}
