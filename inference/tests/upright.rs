//! A photo taken with the camera turned is judged upright, as people and training data see it.

mod support;

use hedge_inference::{ContentType, Region, thumbnail, upright_size};

/// Bright at the top left, darker towards the bottom right; 64 x 64.
fn ramp(turned_over: bool) -> Vec<u8> {
    let shade = |at: u32| 255 - (at % 64 + at / 64) * 2;
    let pixels: Vec<u8> =
        (0..64 * 64).map(|at| shade(if turned_over { 64 * 64 - 1 - at } else { at }).to_le_bytes()[0]).collect();
    let mut bytes = Vec::new();
    jpeg_encoder::Encoder::new(&mut bytes, 100).encode(&pixels, 64, 64, jpeg_encoder::ColorType::Luma).expect("a JPEG");
    bytes
}

/// An EXIF block that says how the camera was held, as a number of so many bytes, behind another entry.
fn exif(orientation: u32, width: u8, big_endian: bool) -> Vec<u8> {
    let number = |value: u32, width: u8| {
        let bytes = value.to_be_bytes()[4 - usize::from(width)..].to_vec();
        if big_endian { bytes } else { bytes.into_iter().rev().collect() }
    };
    let entry = |tag: u32, value: u32, width: u8| {
        let kind = [1, 3, 4][usize::from(width / 2)];
        let padding = vec![0; 4 - usize::from(width)];
        [number(tag, 2), number(kind, 2), number(1, 4), number(value, width), padding].concat()
    };
    let magic = if big_endian { b"MM\0*" } else { b"II*\0" };
    // The directory is not right behind the header, as some writers have it.
    let head = [magic.to_vec(), number(11, 4), vec![9; 3], number(2, 2)].concat();
    [head, entry(0x0100, 640, 4), entry(0x0112, orientation, width), number(0, 4)].concat()
}

fn segment(content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len() + 2).expect("a short segment").to_be_bytes();
    [&[0xFF, 0xE1], &length[..], content].concat()
}

/// The file with these in front of everything else.
fn with_segments(jpeg: &[u8], segments: &[Vec<u8>]) -> Vec<u8> {
    [&jpeg[..2], &segments.concat(), &jpeg[2..]].concat()
}

fn with_orientation(jpeg: &[u8], orientation: u32, big_endian: bool) -> Vec<u8> {
    with_segments(jpeg, &[segment(&[b"Exif\0\0", &exif(orientation, 2, big_endian)[..]].concat())])
}

fn xmp(orientation: &str) -> Vec<u8> {
    format!("<x:xmpmeta><rdf:Description tiff:Make=\"A\" {orientation} /></x:xmpmeta>").into_bytes()
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

#[test]
fn an_orientation_is_found_as_any_number_in_either_order_wherever_it_stands() {
    let upright = values(&ramp(false), None);
    let turned = ramp(true);
    for (width, big_endian) in [1, 2, 4].into_iter().flat_map(|width| [(width, false), (width, true)]) {
        let exif = segment(&[b"Exif\0\0", &exif(3, width, big_endian)[..]].concat());
        let other = segment(b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>");
        check_same(&upright, &values(&with_segments(&turned, std::slice::from_ref(&exif)), None));
        check_same(&upright, &values(&with_segments(&turned, &[other.clone(), exif.clone(), other]), None));
        // Behind the tables and the frame header, right in front of the scan.
        let scan = turned.windows(2).position(|marker| marker == [0xFF, 0xDA]).expect("a scan");
        check_same(&upright, &values(&[&turned[..scan], &exif, &turned[scan..]].concat(), None));
    }
    for text in ["tiff:Orientation=\"3\"", "tiff:Orientation = '3'", "><tiff:Orientation>3</tiff:Orientation"] {
        let packet = segment(&[b"http://ns.adobe.com/xap/1.0/\0", &xmp(text)[..]].concat());
        check_same(&upright, &values(&with_segments(&turned, &[packet]), None));
    }
}

#[test]
fn of_two_orientations_the_first_holds_and_one_that_does_not_exist_is_none() {
    let of = |orientation| segment(&[b"Exif\0\0", &exif(orientation, 4, true)[..]].concat());
    let upright = values(&ramp(false), None);
    check_same(&upright, &values(&with_segments(&ramp(true), &[of(3), of(1)]), None));
    for wrong in [0, 9, 65_539, u32::MAX] {
        check_same(&upright, &values(&with_segments(&ramp(true), &[of(wrong), of(3)]), None));
    }
}

/// The ramp as PNG, with these chunks in front of its pixels and behind them.
fn png(turned_over: bool, before: &[u8], behind: &[u8]) -> Vec<u8> {
    let shade = |at: u32| 255 - (at % 64 + at / 64) * 2;
    let pixels: Vec<u8> =
        (0..64 * 64).map(|at| shade(if turned_over { 64 * 64 - 1 - at } else { at }).to_le_bytes()[0]).collect();
    let mut bytes = Vec::new();
    let encoder = png::Encoder::new(&mut bytes, 64, 64);
    encoder.write_header().and_then(|mut writer| writer.write_image_data(&pixels)).expect("a PNG");
    let (head, rest) = bytes.split_at(33);
    let (pixels, end) = rest.split_at(rest.len() - 12);
    [head, before, pixels, behind, end].concat()
}

fn chunk(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let mut sum = flate2::Crc::new();
    sum.update(kind);
    sum.update(content);
    let length = u32::try_from(content.len()).expect("short").to_be_bytes();
    [&length[..], kind, content, &sum.sum().to_be_bytes()].concat()
}

#[test]
fn a_png_is_turned_upright_as_well() {
    let values = |png: &[u8]| support::photo_input().tensor(&ContentType::Png, png, None).expect("a tensor").data;
    let upright = values(&png(false, &[], &[]));
    for (width, big_endian) in [(1, true), (2, false), (2, true), (4, false), (4, true)] {
        let exif = exif(3, width, big_endian);
        check_same(&upright, &values(&png(true, &chunk(b"eXIf", &exif), &[])));
        check_same(&upright, &values(&png(true, &[], &chunk(b"eXIf", &exif))));
        check_same(&upright, &values(&png(true, &chunk(b"eXIf", &[b"Exif\0\0", &exif[..]].concat()), &[])));
    }
    let packet = chunk(b"iTXt", &[b"XML:com.adobe.xmp\0\0\0\0\0", &xmp("tiff:Orientation=\"3\"")[..]].concat());
    check_same(&upright, &values(&png(true, &packet, &[])));
    check_same(&upright, &values(&png(true, &packet, &chunk(b"eXIf", &exif(3, 2, true)))));
    // EXIF goes before XMP.
    check_same(&upright, &values(&png(false, &packet, &chunk(b"eXIf", &exif(1, 2, true)))));
    let thumbnail = thumbnail(&ContentType::Png, &png(true, &packet, &[]), 32).expect("a picture").expect("smaller");
    check_same(&upright, &self::values(&thumbnail, None));
}

#[test]
fn the_size_of_a_picture_is_that_of_the_upright_one_and_a_damaged_one_has_none() {
    let mut bytes = Vec::new();
    let encoder = png::Encoder::new(&mut bytes, 64, 32);
    encoder.write_header().and_then(|mut writer| writer.write_image_data(&[0; 64 * 32])).expect("a PNG");
    let (head, rest) = bytes.split_at(33);
    let turned = [head, &chunk(b"eXIf", &exif(6, 2, true)), rest].concat();
    assert_eq!(upright_size(&ContentType::Png, &bytes), Ok((64, 32)));
    assert_eq!(upright_size(&ContentType::Png, &turned), Ok((32, 64)));
    assert!(upright_size(&ContentType::Png, &turned[..turned.len() / 2]).is_err());
    assert!(upright_size(&ContentType::Jpeg, &bytes).is_err());
}
