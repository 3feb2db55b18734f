//! A thumbnail is the same picture, smaller in pixels and bytes, and nothing else that was in the file.

use std::path::Path;

use hedge_inference::{ContentType, FeatureError, pixels_only, thumbnail};

fn photos() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/pictures");
    let files = std::fs::read_dir(folder).expect("the pictures are there").map(|entry| entry.expect("listed").path());
    files
        .filter(|file| file.extension().is_some_and(|extension| extension == "jpg"))
        .map(|file| std::fs::read(file).expect("read"))
        .collect()
}

fn size(jpeg: &[u8]) -> (u16, u16) {
    let mut decoder = jpeg_decoder::Decoder::new(jpeg);
    decoder.decode().expect("whole");
    let info = decoder.info().expect("read");
    (info.width, info.height)
}

#[test]
fn photos_become_small_and_keep_their_proportions() {
    let photos = photos();
    assert!(!photos.is_empty());
    for photo in photos {
        let small = thumbnail(&ContentType::Jpeg, &photo, 96).expect("a photo").expect("larger than 96 pixels");
        let ((width, height), (full_width, full_height)) = (size(&small), size(&photo));
        assert_eq!(width.max(height), 96);
        let shape = |width: u16, height: u16| f64::from(width) / f64::from(height);
        let change = shape(width, height) / shape(full_width, full_height);
        assert!((0.97..1.03).contains(&change), "{full_width}x{full_height} became {width}x{height}");
        assert!(small.len() < photo.len());
    }
}

#[test]
fn what_would_not_become_smaller_stays_as_it_is() {
    let photo = photos().remove(0);
    let small = thumbnail(&ContentType::Jpeg, &photo, 96).expect("a photo").expect("smaller");
    assert!(thumbnail(&ContentType::Jpeg, &small, 96).expect("a photo").is_none());
    let tensor = ContentType::Tensor { shape: vec![1, 2] };
    assert_eq!(thumbnail(&tensor, &[0; 8], 96), Ok(None));
}

/// The photo with a text in its EXIF data.
fn marked(photo: &[u8]) -> Vec<u8> {
    let secret = b"Exif\0\0 taken at home";
    let mut marked = photo[..2].to_vec();
    marked.extend([0xFF, 0xE1, 0, u8::try_from(secret.len() + 2).expect("short")]);
    marked.extend(secret);
    marked.extend(&photo[2..]);
    marked
}

fn is_marked(jpeg: &[u8]) -> bool {
    jpeg.windows(4).any(|window| window == b"home")
}

#[test]
fn what_is_in_the_file_besides_the_picture_does_not_travel() {
    let photo = marked(&photos().remove(0));
    assert!(is_marked(&photo));
    let small = thumbnail(&ContentType::Jpeg, &photo, 96).expect("a photo").expect("smaller");
    assert!(!is_marked(&small));
}

#[test]
fn pixels_only_are_made_anew_also_of_a_picture_that_is_small_enough() {
    let small = thumbnail(&ContentType::Jpeg, &photos().remove(0), 96).expect("a photo").expect("smaller");
    for (photo, side_max, long) in [(marked(&small), 96, 96), (marked(&small), 4096, 96), (marked(&small), 32, 32)] {
        let pixels = pixels_only(&ContentType::Jpeg, &photo, side_max).expect("a photo").expect("a picture");
        let (width, height) = size(&pixels);
        assert_eq!(width.max(height), long);
        assert!(!is_marked(&pixels));
    }
    let tensor = ContentType::Tensor { shape: vec![1, 2] };
    assert_eq!(pixels_only(&tensor, &[0; 8], 96), Ok(None));
    assert!(pixels_only(&ContentType::Jpeg, &small[..40], 96).is_err());
}

#[test]
fn a_damaged_picture_is_an_error_not_a_panic() {
    let photo = photos().remove(0);
    assert!(matches!(thumbnail(&ContentType::Jpeg, &photo[..40], 96), Err(FeatureError::Damaged { .. })));
    assert!(thumbnail(&ContentType::Png, &photo, 96).is_err());
}
