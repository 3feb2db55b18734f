//! A sample that is not what the model takes costs one clear error, before any large allocation.

use std::io::Write;

use hedge_inference::{ContentType, FeatureError, Region};

mod support;

/// The input of a small colour model; no library is needed to make its tensor.
fn feature(content_type: &ContentType, bytes: &[u8]) -> Result<Vec<f32>, FeatureError> {
    support::photo_input().tensor(content_type, bytes, None).map(|tensor| tensor.data)
}

#[track_caller]
fn check_refused(content_type: &ContentType, bytes: &[u8], words: &str) {
    let error = feature(content_type, bytes).expect_err("refused").to_string();
    assert!(error.contains(words), "`{error}` does not say `{words}`");
}

fn png(width: u32, height: u32, color: png::ColorType, pixels: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(color);
    encoder.write_header().and_then(|mut writer| writer.write_image_data(pixels)).expect("a PNG");
    bytes
}

fn jpeg(width: u16, height: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    let pixels: Vec<u8> = (0..usize::from(width) * usize::from(height) * 3).map(|at| at.to_le_bytes()[0]).collect();
    jpeg_encoder::Encoder::new(&mut bytes, 90)
        .encode(&pixels, width, height, jpeg_encoder::ColorType::Rgb)
        .expect("a JPEG");
    bytes
}

/// A PNG whose header claims a size that its few bytes cannot hold.
fn png_claiming(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = png(1, 1, png::ColorType::Rgb, &[1, 2, 3]);
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let mut sum = flate2::Crc::new();
    sum.update(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&sum.sum().to_be_bytes());
    bytes.resize(20_000, 0);
    bytes
}

#[test]
fn a_small_file_claiming_a_huge_picture_is_refused_by_its_header() {
    check_refused(&ContentType::Png, &png_claiming(30_000, 30_000), "30000x30000");
    check_refused(&ContentType::Png, &png_claiming(u32::MAX >> 1, 2), "more than");

    let mut huge = jpeg(16, 16);
    let frame = huge.windows(2).position(|marker| marker == [0xFF, 0xC0]).expect("a frame header");
    huge[frame + 5..frame + 9].copy_from_slice(&[0xFF, 0xFF, 0xFF, 0xFF]);
    check_refused(&ContentType::Jpeg, &huge, "65535x65535");
}

#[test]
fn the_memory_of_a_decode_is_bounded_below_the_pixel_limit_too() {
    // 7680 x 7936 is within the pixel limit, but a progressive JPEG keeps all its coefficients.
    let mut progressive = jpeg(16, 16);
    let frame = progressive.windows(2).position(|marker| marker == [0xFF, 0xC0]).expect("a frame header");
    progressive[frame + 1] = 0xC2;
    progressive[frame + 5..frame + 9].copy_from_slice(&[0x1E, 0x00, 0x1F, 0x00]);
    check_refused(&ContentType::Jpeg, &progressive, "bytes of memory");
}

#[test]
fn damaged_pictures_are_named_as_such() {
    let whole = jpeg(64, 48);
    for cut in [2, 3, 20, whole.len() / 4, whole.len() / 2] {
        check_refused(&ContentType::Jpeg, &whole[..cut.max(3)], "damaged or incomplete");
    }
    let whole = png(40, 30, png::ColorType::Rgb, &[9; 40 * 30 * 3]);
    for cut in [8, 20, 40, whole.len() - 20] {
        check_refused(&ContentType::Png, &whole[..cut], "damaged or incomplete");
    }
}

#[test]
fn no_bytes_at_all_make_the_decoders_panic() {
    // Every byte of a picture changed once: an error or a tensor, never the end of the process.
    for (content_type, picture) in
        [(ContentType::Jpeg, jpeg(24, 24)), (ContentType::Png, png(9, 9, png::ColorType::Rgba, &[5; 9 * 9 * 4]))]
    {
        for at in 0..picture.len() {
            let mut changed = picture.clone();
            changed[at] ^= 0xFF;
            if let Ok(values) = feature(&content_type, &changed) {
                assert_eq!(values.len(), 3 * 32 * 32);
            }
        }
    }
}

#[test]
fn text_and_other_formats_are_not_taken_for_pictures() {
    check_refused(&ContentType::Jpeg, b"just a letter\n", "neither JPEG nor PNG");
    check_refused(&ContentType::Jpeg, b"", "none at all");
    check_refused(&ContentType::Jpeg, &png(1, 1, png::ColorType::Rgb, &[1, 2, 3]), "its bytes are PNG");
}

#[test]
fn a_picture_of_one_pixel_is_a_picture() {
    let values = feature(&ContentType::Png, &png(1, 1, png::ColorType::Rgb, &[10, 20, 30])).expect("a tensor");
    assert_eq!((values[0], values[1024], values[2048]), (10.0, 20.0, 30.0));
    feature(&ContentType::Jpeg, &jpeg(1, 1)).expect("a tensor");
    feature(&ContentType::Png, &png(4000, 1, png::ColorType::Grayscale, &[7; 4000])).expect("a tensor");
}

#[test]
fn every_kind_of_png_is_read() {
    let palette = {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_palette(vec![10, 20, 30]);
        encoder.write_header().and_then(|mut writer| writer.write_image_data(&[0])).expect("a PNG");
        bytes
    };
    let deep = {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Sixteen);
        encoder.write_header().and_then(|mut w| w.write_image_data(&[10, 0, 20, 0, 30, 0])).expect("a PNG");
        bytes
    };
    let rgba = png(1, 1, png::ColorType::Rgba, &[10, 20, 30, 0]);
    for bytes in [palette, deep, rgba] {
        let values = feature(&ContentType::Png, &bytes).expect("a tensor");
        assert_eq!((values[0], values[1024], values[2048]), (10.0, 20.0, 30.0));
    }
    let gray = feature(&ContentType::Png, &png(1, 1, png::ColorType::GrayscaleAlpha, &[9, 1])).expect("a tensor");
    assert!(gray.iter().all(|value| *value == 9.0));
}

#[test]
fn tensors_must_have_exactly_the_models_shape() {
    let values = 3 * 32 * 32;
    let tensor = |shape: &[usize]| ContentType::Tensor { shape: shape.to_vec() };
    let bytes = 1.5_f32.to_le_bytes().repeat(values);
    assert_eq!(feature(&tensor(&[1, 3, 32, 32]), &bytes), Ok(vec![1.5; values]));
    assert_eq!(feature(&tensor(&[3, 32, 32]), &bytes), Ok(vec![1.5; values]));
    check_refused(&tensor(&[1, 32, 32, 3]), &bytes, "[1, 32, 32, 3], but the model takes [1, 3, 32, 32]");
    check_refused(&tensor(&[usize::MAX, usize::MAX]), &bytes, "the model takes");
    check_refused(&tensor(&[3, 32, 32]), &bytes[1..], "12287 bytes");
    let mut bad = bytes.clone();
    (&mut bad[40..]).write_all(&f32::NAN.to_le_bytes()).expect("room");
    check_refused(&tensor(&[3, 32, 32]), &bad, "value 10");
}

#[test]
fn a_tensor_cannot_be_cut_to_a_region() {
    let region = Region::new(0.0, 0.0, 0.5, 0.5).expect("a region");
    let content_type = ContentType::Tensor { shape: vec![3, 32, 32] };
    let refused = support::photo_input().tensor(&content_type, &[], Some(&region));
    assert_eq!(refused, Err(FeatureError::RegionOfOther));
}

#[test]
fn a_large_jpeg_is_scaled_while_it_is_decoded_and_looks_the_same() {
    // A soft ramp, so that any shift or brightening would show.
    let (width, height) = (2400_u16, 1600_u16);
    let pixels: Vec<u8> = (0..u32::from(height))
        .flat_map(|y| (0..u32::from(width)).map(move |x| ((x + y) * 255 / 3998).to_le_bytes()[0]))
        .collect();
    let mut bytes = Vec::new();
    jpeg_encoder::Encoder::new(&mut bytes, 95)
        .encode(&pixels, width, height, jpeg_encoder::ColorType::Luma)
        .expect("a JPEG");
    let scaled = feature(&ContentType::Jpeg, &bytes).expect("a tensor");
    let exact = feature(&ContentType::Png, &png(2400, 1600, png::ColorType::Grayscale, &pixels)).expect("a tensor");
    let greatest = scaled.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(greatest <= 2.0, "{greatest} of 255");
}
