//! Makes of a sample's bytes what may leave the device, as core decides.

use std::sync::Arc;

use bytes::Bytes;
use hedge_core::privacy::Treatment;
use hedge_inference::{ContentType, FeatureError, Region, Tensor, cropped, pixels_only, thumbnail};
use hedge_proto::{Digest, PayloadForm, Rect};
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

    /// What a model has made of it on its way.
    #[must_use]
    pub fn embedding(embedding: &Tensor) -> Self {
        let content_type = ContentType::Tensor { shape: embedding.shape.clone() }.to_header();
        Self { form: PayloadForm::Embedding, content_type, bytes: Bytes::from(embedding.to_bytes()) }
    }

    /// Of this one. Of a part of a picture there is only a part.
    fn smaller(&self, jpeg: Vec<u8>) -> Self {
        let form = if self.form == PayloadForm::Crop { PayloadForm::Crop } else { PayloadForm::Thumbnail };
        Self { form, content_type: ContentType::Jpeg.to_header(), bytes: Bytes::from(jpeg) }
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
    /// `view` is the part of the picture that was judged, if that is not all of it.
    pub async fn treat(&self, payload: SentPayload, view: Option<Rect>, treatment: Treatment) -> SentPayload {
        let is_picture = ContentType::parse(&payload.content_type).is_some_and(|kind| kind.is_picture());
        let treatment = match (treatment, view.filter(|_| is_picture)) {
            (Treatment::Cut { side_max }, Some(view)) => return self.cut(payload, view, side_max).await,
            (Treatment::Cut { side_max }, None) => {
                side_max.map_or(Treatment::Keep, |side_max| Treatment::Shrink { side_max })
            }
            (treatment, _) => treatment,
        };
        match treatment {
            Treatment::Keep | Treatment::Cut { .. } => payload,
            Treatment::Drop => payload.nothing(),
            Treatment::Embed => held_back(payload, "there is no embedding of it"),
            Treatment::Shrink { side_max } | Treatment::Offer { side_max } => {
                match self.made(&payload, move |kind, bytes| thumbnail(kind, bytes, side_max)).await {
                    Ok(Some(jpeg)) if treatment.saves(jpeg.len(), payload.bytes.len()) => payload.smaller(jpeg),
                    Ok(_) => payload,
                    Err(error) => {
                        tracing::warn!(error, "a picture could not be made smaller; it stays as it came");
                        payload
                    }
                }
            }
            Treatment::Fit { side_max } => {
                match self.made(&payload, move |kind, bytes| thumbnail(kind, bytes, side_max)).await {
                    Ok(Some(jpeg)) => payload.smaller(jpeg),
                    Ok(None) => payload,
                    Err(error) => held_back(payload, &error),
                }
            }
            Treatment::Reduce { side_max } => {
                match self.made(&payload, move |kind, bytes| pixels_only(kind, bytes, side_max)).await {
                    Ok(Some(jpeg)) => payload.smaller(jpeg),
                    Ok(None) => payload.nothing(),
                    Err(error) => held_back(payload, &error),
                }
            }
        }
    }

    async fn cut(&self, payload: SentPayload, view: Rect, side_max: Option<u32>) -> SentPayload {
        let part = match Region::try_from(view) {
            Ok(part) => part,
            Err(error) => return held_back(payload, &error.to_string()),
        };
        let side_max = side_max.unwrap_or(u32::MAX);
        match self.made(&payload, move |kind, bytes| cropped(kind, bytes, &part, side_max).map(Some)).await {
            Ok(Some(jpeg)) => SentPayload { form: PayloadForm::Crop, ..payload.smaller(jpeg) },
            Ok(None) => payload.nothing(),
            Err(error) => held_back(payload, &error),
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
    tracing::warn!(error, "a sample could not be made as small as is wanted; nothing of it leaves the device");
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
        let made = reducer.treat(sample("image/png", PICTURE), None, Treatment::Reduce { side_max: 16 }).await;
        assert_eq!((made.form, &*made.content_type, side(&made.bytes)), (PayloadForm::Thumbnail, "image/jpeg", 16));
        let again = reducer.treat(made.clone(), None, Treatment::Fit { side_max: 16 }).await;
        assert_eq!(again.bytes, made.bytes, "what travels has the same sum each time");
        let smaller = reducer.treat(made, None, Treatment::Fit { side_max: 8 }).await;
        assert_eq!((smaller.form, side(&smaller.bytes)), (PayloadForm::Thumbnail, 8));
    }

    /// The upper right quarter.
    const VIEW: Option<Rect> = Some(Rect { left: 0.5, top: 0.0, width: 0.5, height: 0.5 });

    #[tokio::test]
    async fn of_a_picture_only_the_part_that_was_judged_is_left_in_every_later_form_too() {
        let (reducer, cut) = (Reducer::default(), Treatment::Cut { side_max: None });
        let made = reducer.treat(sample("image/png", PICTURE), VIEW, cut).await;
        assert_eq!((made.form, &*made.content_type, side(&made.bytes)), (PayloadForm::Crop, "image/jpeg", 14));
        let small = Treatment::Cut { side_max: Some(8) };
        let smaller = reducer.treat(sample("image/png", PICTURE), VIEW, small).await;
        assert_eq!((smaller.form, side(&smaller.bytes)), (PayloadForm::Crop, 8));
        // Of what was stored as a thumbnail of all of it there is the same part.
        let thumbnail = reducer.treat(sample("image/png", PICTURE), VIEW, Treatment::Reduce { side_max: 20 }).await;
        let part = reducer.treat(thumbnail, VIEW, cut).await;
        assert_eq!((part.form, side(&part.bytes)), (PayloadForm::Crop, 10));
        // A part stays one when it is made smaller: nobody looks for the part in it again.
        let part = reducer.treat(made, VIEW, Treatment::Reduce { side_max: 8 }).await;
        assert_eq!((part.form, side(&part.bytes)), (PayloadForm::Crop, 8));
    }

    #[tokio::test]
    async fn what_was_judged_as_a_whole_or_is_no_picture_stays_and_a_part_that_cannot_be_meant_leaves_as_nothing() {
        let (reducer, cut) = (Reducer::default(), Treatment::Cut { side_max: None });
        let series = sample("application/vnd.hedge.tensor; dtype=f32; shape=1,2", &[7; 8]);
        for (payload, view) in [(sample("image/png", PICTURE), None), (series, VIEW)] {
            let left = reducer.treat(payload.clone(), view, cut).await;
            assert_eq!((left.form, left.bytes), (PayloadForm::Whole, payload.bytes));
        }
        let outside = Some(Rect { left: 0.9, top: 0.0, width: 0.5, height: 0.5 });
        let damaged = (sample("image/jpeg", b"\xFF\xD8\xFF taken at home"), VIEW);
        for (payload, view) in [(sample("image/png", PICTURE), outside), damaged] {
            let left = reducer.treat(payload, view, cut).await;
            assert_eq!((left.form, left.bytes.len()), (PayloadForm::Nothing, 0));
        }
    }

    #[tokio::test]
    async fn what_cannot_be_made_poor_enough_leaves_as_nothing() {
        let (reducer, side_max) = (Reducer::default(), 16);
        let damaged = sample("image/jpeg", b"\xFF\xD8\xFF taken at home");
        let tensor = sample("application/vnd.hedge.tensor; dtype=f32; shape=1,2", &[7; 8]);
        let strange = sample("text/plain", b"secret");
        for payload in [damaged, tensor, strange] {
            let kind = payload.content_type.clone();
            for treatment in [Treatment::Reduce { side_max }, Treatment::Embed, Treatment::Drop] {
                let left = reducer.treat(payload.clone(), None, treatment).await;
                assert_eq!((left.form, left.bytes.len()), (PayloadForm::Nothing, 0), "{kind}");
                assert_eq!((left.digest(), left.content_type), (Digest::of(&[]), kind.clone()));
            }
            let saved = reducer.treat(payload.clone(), None, Treatment::Shrink { side_max }).await;
            assert_eq!((saved.form, saved.bytes), (PayloadForm::Whole, payload.bytes));
        }
    }
}
