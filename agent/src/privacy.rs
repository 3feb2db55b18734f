//! Makes of a sample's bytes what may leave the device, as core decides.

use std::sync::Arc;

use bytes::Bytes;
use hedge_core::privacy::Treatment;
use hedge_inference::{ContentType, FeatureError, pixels_only, thumbnail};
use hedge_proto::{Digest, PayloadForm};
use tokio::sync::Semaphore;

/// What of a sample goes to the cloud.
#[derive(Debug, Clone)]
pub struct SentPayload {
    pub form: PayloadForm,
    /// Of the sample, also when nothing of it goes.
    pub content_type: String,
    pub bytes: Bytes,
}

impl SentPayload {
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    fn thumbnail(jpeg: Vec<u8>) -> Self {
        Self { form: PayloadForm::Thumbnail, content_type: ContentType::Jpeg.to_header(), bytes: Bytes::from(jpeg) }
    }

    fn nothing(self) -> Self {
        Self { form: PayloadForm::Nothing, bytes: Bytes::new(), ..self }
    }
}

/// Makes pictures smaller, one at a time: each may take as much memory as the largest one decoded. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reducer(Arc<Semaphore>);

impl Default for Reducer {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Reducer {
    pub async fn treat(&self, payload: SentPayload, treatment: Treatment) -> SentPayload {
        match treatment {
            Treatment::Keep => payload,
            Treatment::Drop => payload.nothing(),
            Treatment::Shrink { side_max } | Treatment::Offer { side_max } => {
                match self.made(&payload, move |kind, bytes| thumbnail(kind, bytes, side_max)).await {
                    Ok(Some(jpeg)) if treatment.saves(jpeg.len(), payload.bytes.len()) => SentPayload::thumbnail(jpeg),
                    Ok(_) => payload,
                    Err(error) => {
                        tracing::warn!(error, "a picture could not be made smaller; it stays as it came");
                        payload
                    }
                }
            }
            Treatment::Fit { side_max } => {
                match self.made(&payload, move |kind, bytes| thumbnail(kind, bytes, side_max)).await {
                    Ok(Some(jpeg)) => SentPayload::thumbnail(jpeg),
                    Ok(None) => payload,
                    Err(error) => held_back(payload, &error),
                }
            }
            Treatment::Reduce { side_max } => {
                match self.made(&payload, move |kind, bytes| pixels_only(kind, bytes, side_max)).await {
                    Ok(Some(jpeg)) => SentPayload::thumbnail(jpeg),
                    Ok(None) => payload.nothing(),
                    Err(error) => held_back(payload, &error),
                }
            }
        }
    }

    async fn made(
        &self,
        payload: &SentPayload,
        make: impl FnOnce(&ContentType, &[u8]) -> Result<Option<Vec<u8>>, FeatureError> + Send + 'static,
    ) -> Result<Option<Vec<u8>>, String> {
        let content_type = ContentType::parse(&payload.content_type)
            .ok_or_else(|| format!("`{}` is not read", payload.content_type))?;
        let _turn = self.0.acquire().await.map_err(|closed| closed.to_string())?;
        let bytes = payload.bytes.clone();
        let made = tokio::task::spawn_blocking(move || make(&content_type, &bytes)).await;
        made.map_err(|stopped| stopped.to_string())?.map_err(|error| error.to_string())
    }
}

fn held_back(payload: SentPayload, error: &str) -> SentPayload {
    tracing::warn!(error, "a picture could not be made as small as [privacy] wants; nothing of it leaves the device");
    payload.nothing()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(content_type: &str, bytes: &[u8]) -> SentPayload {
        SentPayload {
            form: PayloadForm::Whole,
            content_type: content_type.to_owned(),
            bytes: Bytes::copy_from_slice(bytes),
        }
    }

    /// 28 pixels square.
    const PICTURE: &[u8] = include_bytes!("../../models/fashion-small/golden/test-0.png");

    /// The longer side, from the frame's header.
    fn side(jpeg: &[u8]) -> u16 {
        let at = jpeg.windows(2).position(|marker| marker == [0xFF, 0xC0]).expect("a frame");
        let [height, width] = [5, 7].map(|offset| u16::from_be_bytes([jpeg[at + offset], jpeg[at + offset + 1]]));
        height.max(width)
    }

    #[tokio::test]
    async fn a_thumbnail_is_made_once_and_made_smaller_only_for_a_lower_ceiling() {
        let reducer = Reducer::default();
        let made = reducer.treat(sample("image/png", PICTURE), Treatment::Reduce { side_max: 16 }).await;
        assert_eq!((made.form, &*made.content_type, side(&made.bytes)), (PayloadForm::Thumbnail, "image/jpeg", 16));
        let again = reducer.treat(made.clone(), Treatment::Fit { side_max: 16 }).await;
        assert_eq!(again.bytes, made.bytes, "what travels has the same sum each time");
        let smaller = reducer.treat(made, Treatment::Fit { side_max: 8 }).await;
        assert_eq!((smaller.form, side(&smaller.bytes)), (PayloadForm::Thumbnail, 8));
    }

    #[tokio::test]
    async fn what_cannot_be_made_poor_enough_leaves_as_nothing() {
        let (reducer, side_max) = (Reducer::default(), 16);
        let damaged = sample("image/jpeg", b"\xFF\xD8\xFF taken at home");
        let tensor = sample("application/vnd.hedge.tensor; dtype=f32; shape=1,2", &[7; 8]);
        let strange = sample("text/plain", b"secret");
        for payload in [damaged, tensor, strange] {
            let kind = payload.content_type.clone();
            for treatment in [Treatment::Reduce { side_max }, Treatment::Drop] {
                let left = reducer.treat(payload.clone(), treatment).await;
                assert_eq!((left.form, left.bytes.len()), (PayloadForm::Nothing, 0), "{kind}");
                assert_eq!((left.digest(), left.content_type), (Digest::of(&[]), kind.clone()));
            }
            let saved = reducer.treat(payload.clone(), Treatment::Shrink { side_max }).await;
            assert_eq!((saved.form, saved.bytes), (PayloadForm::Whole, payload.bytes));
        }
    }
}
