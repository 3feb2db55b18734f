//! What a decoder made up is no picture; what is merely odd is one.

mod support;

use hedge_inference::{ContentType, FeatureError, thumbnail};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

/// How the picture below is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Colour,
    ColourHalved,
    Gray,
    Restarts,
    OwnTables,
    Progressive,
}

const FORMS: [Form; 6] =
    [Form::Colour, Form::ColourHalved, Form::Gray, Form::Restarts, Form::OwnTables, Form::Progressive];

/// Something with shapes and grain, as a camera sees it.
fn jpeg(width: u16, height: u16, form: Form) -> Vec<u8> {
    let mut grain = 1_u32;
    let mut value = |x: u32, y: u32, channel: u32| {
        grain = grain.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((x * 2 + y * (channel + 1) + (x / 16 * y / 16) * 7 + (grain >> 28)) % 256).to_le_bytes()[0]
    };
    let channels = if form == Form::Gray { 1 } else { 3 };
    let (columns, rows) = (u32::from(width), u32::from(height));
    let mut pixels = Vec::new();
    for at in 0..columns * rows * channels {
        pixels.push(value(at / channels % columns, at / channels / columns, at % channels));
    }
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, 85);
    encoder.set_sampling_factor(SamplingFactor::F_1_1);
    match form {
        Form::Colour | Form::Gray => {}
        Form::ColourHalved => encoder.set_sampling_factor(SamplingFactor::F_2_2),
        Form::Restarts => encoder.set_restart_interval(7),
        Form::OwnTables => encoder.set_optimized_huffman_tables(true),
        Form::Progressive => encoder.set_progressive(true),
    }
    let color = if channels == 1 { ColorType::Luma } else { ColorType::Rgb };
    encoder.encode(&pixels, width, height, color).expect("a JPEG");
    bytes
}

/// Where the picture data begin and end.
fn data(jpeg: &[u8]) -> (usize, usize) {
    let scan = jpeg.windows(2).position(|marker| marker == [0xFF, 0xDA]).expect("a scan");
    let header = usize::from(u16::from_be_bytes([jpeg[scan + 2], jpeg[scan + 3]]));
    (scan + 2 + header, jpeg.len() - 2)
}

/// The file with so much of its picture data, in percent, and then this.
fn torn(jpeg: &[u8], percent: usize, then: &[u8]) -> Vec<u8> {
    let (start, end) = data(jpeg);
    [&jpeg[..start + (end - start) * percent / 100], then].concat()
}

fn values(jpeg: &[u8]) -> Result<Vec<f32>, FeatureError> {
    support::photo_input().tensor(&ContentType::Jpeg, jpeg, None).map(|tensor| tensor.data)
}

#[track_caller]
fn check_refused(jpeg: &[u8], what: &str) {
    match values(jpeg) {
        Err(FeatureError::Damaged { .. }) => {}
        other => panic!("{what}: {:?}", other.map(|values| values.len())),
    }
}

#[track_caller]
fn check_same(jpeg: &[u8], expected: &[f32], what: &str) {
    match values(jpeg) {
        Ok(values) => assert!(values == expected, "{what}: another picture"),
        Err(error) => panic!("{what}: {error}"),
    }
}

#[test]
fn a_torn_jpeg_is_no_picture_whatever_stands_behind_the_tear() {
    let padding = [0; 30_000];
    let padded = [&padding[..], &[0xFF, 0xD9]].concat();
    for form in FORMS {
        let whole = jpeg(320, 240, form);
        values(&whole).expect("a picture");
        for percent in [0, 1, 3, 6, 25, 50, 85] {
            for (then, name) in [
                (&[0xFF, 0xD9][..], "an end marker"),
                (&[0xFF, 0xFF, 0xD9], "fill and an end marker"),
                (&[], "nothing"),
                (&[0xFF], "half a marker"),
                (&padded, "zeros and an end marker"),
                (&padding, "zeros"),
                (&[0xFF; 64], "ones"),
                (&whole, "the next picture"),
            ] {
                check_refused(&torn(&whole, percent, then), &format!("{form:?}, {percent} %, then {name}"));
            }
        }
    }
}

#[test]
fn a_torn_jpeg_is_no_picture_at_reduced_scale_either() {
    // Just larger than what is always decoded at full scale.
    for form in [Form::Restarts, Form::Progressive] {
        let whole = jpeg(2000, 1100, form);
        values(&whole).expect("a picture");
        let torn = torn(&whole, 50, &[0xFF, 0xD9]);
        check_refused(&torn, &format!("{form:?}"));
        thumbnail(&ContentType::Jpeg, &torn, 96).expect_err("nor has it a thumbnail");
    }
}

#[test]
fn the_reason_says_how_much_must_be_there() {
    let error = values(&torn(&jpeg(320, 240, Form::Colour), 50, &[0xFF, 0xD9])).expect_err("refused").to_string();
    assert_eq!(
        error,
        "the JPEG is damaged or incomplete: the picture data ends early; at least 95 % of the rows must be there"
    );
}

#[test]
fn a_progressive_jpeg_without_its_last_scans_is_no_picture() {
    let whole = jpeg(320, 240, Form::Progressive);
    let scans: Vec<usize> =
        whole.windows(2).enumerate().filter(|(_, marker)| *marker == [0xFF, 0xDA]).map(|(at, _)| at).collect();
    assert!(scans.len() > 2, "{scans:?}");
    for at in &scans[1..] {
        check_refused(&[&whole[..*at], &[0xFF, 0xD9]].concat(), "cut between two scans");
    }
}

#[test]
fn a_camera_that_loses_the_last_bytes_of_a_frame_is_not_blind() {
    // The others come in several scans.
    for form in [Form::Colour, Form::ColourHalved, Form::Gray, Form::Restarts] {
        let whole = jpeg(320, 400, form);
        let seen = values(&whole).expect("a picture");
        for then in [&[0xFF, 0xD9][..], &[]] {
            let most = values(&torn(&whole, 98, then)).unwrap_or_else(|error| panic!("{form:?}: {error}"));
            // Of 32 rows, the lowest two may show what is missing.
            for (row, (a, b)) in seen.chunks(32).zip(most.chunks(32)).enumerate() {
                assert!(row % 32 >= 30 || a == b, "{form:?}: row {row} is another");
            }
        }
    }
}

#[test]
fn odd_files_that_are_whole_are_read_as_they_are() {
    for form in FORMS {
        let whole = jpeg(96, 80, form);
        let expected = values(&whole).expect("a picture");
        let open = &whole[..data(&whole).1];
        for (odd, name) in [
            (open.to_vec(), "no end marker"),
            ([open, &[0; 5000]].concat(), "zeros for an end marker"),
            ([open, &[0; 5000], &[0xFF, 0xD9]].concat(), "zeros before the end marker"),
            ([open, &[0xFF; 9], &[0xD9]].concat(), "fill before the end marker"),
            ([open, &[0xFF]].concat(), "half an end marker"),
            ([open, b"\x12\x34\x56\x78", &[0xFF, 0xD9]].concat(), "bytes before the end marker"),
            ([open, &[0xFF, 0xD0, 0xFF, 0xD9]].concat(), "a last restart marker"),
            ([&whole[..], &[7; 999]].concat(), "junk behind it"),
            ([open, &whole].concat(), "the next picture for an end marker"),
            ([open, b"\xFF\xFE\x7F\xFFcut".as_slice()].concat(), "a cut comment for an end marker"),
            ([&whole[..20], &[0, 1, 2], &whole[20..]].concat(), "bytes between segments"),
            ([&whole[..20], &[0xFF, 0xFF, 0xFF], &whole[20..]].concat(), "fill between segments"),
        ] {
            check_same(&odd, &expected, &format!("{form:?}, {name}"));
        }
    }
}

#[test]
fn a_flat_picture_whose_data_are_zeros_is_whole() {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, 90);
    encoder.set_optimized_huffman_tables(true);
    encoder.encode(&vec![128; 640 * 480], 640, 480, ColorType::Luma).expect("a JPEG");
    let seen = values(&bytes).expect("a picture");
    assert!(seen.iter().all(|value| *value == 128.0));
}

/// Without the segments of this kind.
fn without(jpeg: &[u8], marker: u8) -> Vec<u8> {
    let (mut left, mut at) = (jpeg[..2].to_vec(), 2);
    let (start, _) = data(jpeg);
    while at < start {
        let end = at + 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
        if jpeg[at + 1] != marker {
            left.extend(&jpeg[at..end]);
        }
        at = end;
    }
    [&left, &jpeg[start..]].concat()
}

#[test]
fn a_camera_that_leaves_the_huffman_tables_out_means_the_standards() {
    for form in [Form::Colour, Form::ColourHalved, Form::Gray, Form::Restarts] {
        let whole = jpeg(320, 240, form);
        let expected = values(&whole).expect("a picture");
        let jfif = without(&whole, 0xC4);
        assert!(jfif.len() < whole.len());
        let bare = without(&jfif, 0xE0);
        let avi = [&bare[..2], b"\xFF\xE0\0\x10AVI1\0\0\0\0\0\0\0\0\0\0", &bare[2..]].concat();
        for (frame, name) in [(&jfif, "JFIF"), (&bare, "no APP segment"), (&avi, "AVI1")] {
            check_same(frame, &expected, &format!("{form:?}, {name}"));
            check_refused(&torn(frame, 50, &[0xFF, 0xD9]), "a torn one");
        }
    }
}

#[test]
fn some_tables_of_its_own_go_before_the_standards() {
    let whole = jpeg(320, 240, Form::Colour);
    let expected = values(&whole).expect("a picture");
    let table = whole.windows(2).position(|marker| marker == [0xFF, 0xC4]).expect("a table");
    let end = table + 2 + usize::from(u16::from_be_bytes([whole[table + 2], whole[table + 3]]));
    let some = [&whole[..table], &whole[end..]].concat();
    check_same(&some, &expected, "the first table is left out");
}

fn png(rows: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 64, rows);
    encoder.set_color(png::ColorType::Rgb);
    let pixels: Vec<u8> = (0..64 * rows * 3).map(|at| (at * at / 7).to_le_bytes()[0]).collect();
    encoder.write_header().and_then(|mut writer| writer.write_image_data(&pixels)).expect("a PNG");
    bytes
}

fn chunk(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let mut sum = flate2::Crc::new();
    sum.update(kind);
    sum.update(content);
    let length = u32::try_from(content.len()).expect("short").to_be_bytes();
    [&length[..], kind, content, &sum.sum().to_be_bytes()].concat()
}

#[test]
fn a_torn_png_is_no_picture_however_well_it_ends() {
    let whole = png(64);
    let start = whole.windows(4).position(|kind| kind == b"IDAT").expect("pixels") + 4;
    let length = u32::from_be_bytes(whole[start - 8..start - 4].try_into().expect("four")) as usize;
    let refused = |bytes: &[u8]| support::photo_input().tensor(&ContentType::Png, bytes, None).is_err();
    assert!(!refused(&whole));
    for percent in [0, 1, 6, 50, 90, 99] {
        let part = chunk(b"IDAT", &whole[start..start + length * percent / 100]);
        let torn = [&whole[..start - 8], &part, &chunk(b"IEND", &[])].concat();
        assert!(refused(&torn), "{percent} % and an end");
        assert!(refused(&whole[..start + length * percent / 100]), "{percent} %");
    }
    assert!(!refused(&[&whole[..], &[7; 99]].concat()), "junk behind it");
}
