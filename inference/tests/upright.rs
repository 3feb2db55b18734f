//! A photo taken with the camera turned is judged upright, as people and training data see it.

mod support;

use hedge_inference::{ContentType, Region};

/// Bright at the top left, darker towards the bottom right; 64 x 64.
fn ramp(turned_over: bool) -> Vec<u8> {
    let shade = |at: u32| 255 - (at % 64 + at / 64) * 2;
    let pixels: Vec<u8> =
        (0..64 * 64).map(|at| shade(if turned_over { 64 * 64 - 1 - at } else { at }).to_le_bytes()[0]).collect();
    let mut bytes = Vec::new();
    jpeg_encoder::Encoder::new(&mut bytes, 100).encode(&pixels, 64, 64, jpeg_encoder::ColorType::Luma).expect("a JPEG");
    bytes
}

/// The smallest EXIF segment that says how the camera was held, put right after the start of the file.
fn with_orientation(jpeg: &[u8], orientation: u8, big_endian: bool) -> Vec<u8> {
    let little = *b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\0\0\0\0\0\0\0\0";
    let big = *b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\0\0\0\0\0\0\0";
    let mut tiff = if big_endian { big } else { little };
    tiff[if big_endian { 19 } else { 18 }] = orientation;
    let segment = [b"Exif\0\0".as_slice(), &tiff].concat();
    let length = u16::try_from(segment.len() + 2).expect("a short segment").to_be_bytes();
    [&jpeg[..2], &[0xFF, 0xE1], &length, &segment, &jpeg[2..]].concat()
}

fn values(jpeg: &[u8], region: Option<&Region>) -> Vec<f32> {
    support::photo_input().tensor(&ContentType::Jpeg, jpeg, region).expect("a tensor").data
}

#[track_caller]
fn check_same(a: &[f32], b: &[f32]) {
    let greatest = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(greatest <= 3.0, "{greatest} of 255");
}

#[test]
fn a_photo_taken_upside_down_is_judged_upright() {
    let upright = values(&ramp(false), None);
    for big_endian in [false, true] {
        check_same(&upright, &values(&with_orientation(&ramp(true), 3, big_endian), None));
    }
}

#[test]
fn a_region_is_a_part_of_the_upright_picture() {
    let corner = Region::new(0.0, 0.0, 0.5, 0.5).expect("a region");
    let upright = values(&ramp(false), Some(&corner));
    check_same(&upright, &values(&with_orientation(&ramp(true), 3, false), Some(&corner)));
}

#[test]
fn an_orientation_that_does_not_exist_changes_nothing() {
    check_same(&values(&ramp(false), None), &values(&with_orientation(&ramp(false), 77, false), None));
}
