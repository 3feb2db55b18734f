//! Samples in files whose bytes alone say what they are: pictures, recordings, `.npy`, numbers as text, raw f32.

use super::Input;
use super::series::{separator, words};
use super::{ContentType, FeatureError, StageTimes, Tensor, npy, tensor, what_else};

/// The input tensors of a file: one of a picture or a recording, one or more of numbers.
pub(crate) fn samples(input: &Input, bytes: &[u8]) -> Result<Vec<Tensor>, FeatureError> {
    if let Some(content_type) = ContentType::sniff(bytes) {
        return Ok(vec![tensor(input, &content_type, bytes, None, &mut StageTimes::default())?]);
    }
    let one: usize = input.shape.iter().product();
    if npy::is_npy(bytes) {
        let (shape, data) = npy::read(bytes).map_err(|reason| FeatureError::NoSample { reason })?;
        // An array of one sample, or of several of them.
        let sample = input.shape.get(1..).unwrap_or_default();
        return if shape == input.shape || shape == sample || shape.get(1..) == Some(sample) && !data.is_empty() {
            cut(input, data)
        } else {
            Err(FeatureError::WrongShape { shape, expected: input.shape.clone() })
        };
    }
    if let Some(series) = &input.series {
        if let Some(content_type) = ContentType::sniff_rows(bytes) {
            return series.samples(&content_type, bytes, &input.shape);
        }
        // Its columns have names and an order, so it is never taken number by number.
    } else if let Some(rows) = rows(bytes)? {
        let values: usize = rows.iter().map(Vec::len).sum();
        return match rows.iter().find(|row| row.len() != one) {
            Some(row) if values != one => Err(FeatureError::NoSample {
                reason: format!("it holds rows of {} numbers, but the model takes {one}", row.len()),
            }),
            _ => cut(input, rows.concat()),
        };
    }
    let looks = what_else(bytes).map_or_else(String::new, |what| format!("{what}, "));
    let printed = bytes.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
    if bytes.len() == one * size_of::<f32>() && !printed {
        return Ok(vec![Tensor::read(&input.shape, bytes, &input.shape)?]);
    }
    let wanted = format!("numbers (.npy, CSV, or {} bytes of little-endian float32)", one * size_of::<f32>());
    let reason = match (&input.picture, &input.audio) {
        (Some(_), _) => format!("it is {looks}neither JPEG nor PNG, nor {wanted}"),
        (None, Some(_)) => format!("it is {looks}no WAV file, nor {wanted}"),
        (None, None) => format!("it is {looks}no {wanted}"),
    };
    Err(FeatureError::NoSample { reason })
}

/// The samples that lie one after the other in `data`.
fn cut(input: &Input, data: Vec<f32>) -> Result<Vec<Tensor>, FeatureError> {
    if let Some(index) = data.iter().position(|value| !value.is_finite()) {
        return Err(FeatureError::NotFinite { index });
    }
    let one: usize = input.shape.iter().product();
    Ok(data.chunks_exact(one).map(|data| Tensor::new(input.shape.clone(), data.to_vec())).collect())
}

/// The numbers in the lines of a text, after a line of headings if there is one. `None` if this is no such text.
fn rows(bytes: &[u8]) -> Result<Option<Vec<Vec<f32>>>, FeatureError> {
    let Ok(text) = hedge_proto::text(bytes.to_vec()) else { return Ok(None) };
    let lines: Vec<(usize, &str)> = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).collect();
    // Where some cells of the first line are numbers it is a sample with a mistake, and no headings.
    let any = |line: &str| cells(line).iter().any(|cell| cell.replace(',', ".").parse::<f32>().is_ok());
    let are_numbers = |at: usize| lines.get(at).is_some_and(|(_, line)| numbers(line).is_ok());
    let begin = match lines.first() {
        Some((_, first)) if any(first) && (separator(first).is_some() || are_numbers(0) || are_numbers(1)) => 0,
        Some(_) if lines.get(1).is_some_and(|(_, second)| any(second)) => 1,
        _ => return Ok(None),
    };
    let row = |(at, line): &(usize, &str)| {
        let refused = |word: String| {
            let what = match word.as_str() {
                "" => "has an empty cell".to_owned(),
                word if word.contains(',') => format!("holds `{word}`: write numbers with a decimal point"),
                word => format!("holds `{word}`, which is not a number"),
            };
            FeatureError::NoSample { reason: format!("line {} {what}", at + 1) }
        };
        numbers(line).map_err(refused)
    };
    lines[begin..].iter().map(row).collect::<Result<_, _>>().map(Some)
}

/// The cells of a line; a separator may end it. Where that is a semicolon, a comma is none.
fn cells(line: &str) -> Vec<String> {
    let (line, separator) = (line.trim(), separator(line.trim()));
    words(separator.and_then(|sign| line.strip_suffix(sign)).unwrap_or(line), separator)
}

/// The numbers of a line, or the first cell that is none.
fn numbers(line: &str) -> Result<Vec<f32>, String> {
    cells(line).iter().map(|cell| cell.parse().map_err(|_| cell.chars().take(40).collect())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(text: &str) -> Input {
        toml::from_str(text).expect("an input")
    }

    fn three() -> Input {
        input("name = \"x\"\nshape = [1, 3]")
    }

    #[track_caller]
    fn check(bytes: &[u8], expected: &[[f32; 3]]) {
        let tensors = samples(&three(), bytes).expect("samples");
        let data: Vec<&[f32]> = tensors.iter().map(|tensor| tensor.data.as_slice()).collect();
        assert_eq!(data, expected);
        assert!(tensors.iter().all(|tensor| tensor.shape == [1, 3]));
    }

    fn npy(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
        let length = u16::try_from(header.len()).expect("short").to_le_bytes();
        [b"\x93NUMPY\x01\x00", length.as_slice(), header.as_bytes(), data].concat()
    }

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn numbers_are_read_from_npy_text_and_raw_files_one_sample_or_many() {
        let (one, two) = ([[0.5, -1.0, 2.0]], [[0.5, -1.0, 2.0], [1.0, 2.0, 3.0]]);
        check(&f32s(&one[0]), &one);
        check(b"0.5,-1,2\n", &one);
        check("\u{feff}a;b;c\r\n0.5;-1;2\r\n1;2;3\r\n\r\n".as_bytes(), &two);
        check(b"0.5\n-1\n2e0\n", &one);
        check(&npy("<f4", "False", "(3,)", &f32s(&one[0])), &one);
        check(&npy("<f4", "False", "(1, 3)", &f32s(&one[0])), &one);
        check(&npy("<f4", "False", "(2, 3)", &f32s(two.as_flattened())), &two);
        check(&npy("|i1", "False", "(3,)", &[1, 255, 2]), &[[1.0, -1.0, 2.0]]);
        check(&npy(">f8", "False", "(3,)", &[0.5_f64, -1.0, 2.0].map(f64::to_be_bytes).concat()), &one);
        check(&npy("<f2", "False", "(3,)", &[0x00, 0x38, 0x00, 0xBC, 0x00, 0x40]), &one);
    }

    #[test]
    fn no_number_shifts_to_anothers_place_and_no_row_is_left_out() {
        for (text, words) in [
            ("0.5,,2,3\n", "line 1 has an empty cell"),
            ("1,2,3\n1\t\t2\t3\n", "line 2 has an empty cell"),
            ("0,5;1,5\n1,5;2,5\n", "line 1 holds `0,5`: write numbers with a decimal point"),
            ("0.5,NA,2\n1,2,3\n", "line 1 holds `NA`"),
            ("0.5 NA 2\n1 2 3\n", "line 1 holds `NA`"),
        ] {
            let error = samples(&three(), text.as_bytes()).expect_err(text).to_string();
            assert!(error.contains(words), "`{error}` does not say `{words}`");
        }
        check(b"\"a\",\"b\",\"c\"\n\"0.5\",\"-1\",\"2\"\n", &[[0.5, -1.0, 2.0]]);
        check(b"0.5, -1, 2,\n", &[[0.5, -1.0, 2.0]]);
        check(b" 0.5   -1 2 \n", &[[0.5, -1.0, 2.0]]);
    }

    #[test]
    fn a_table_in_quotes_is_read_by_its_columns() {
        let columns =
            "name = \"x\"\nshape = [1, 2, 2]\n[series]\nchannels = [\"a\", \"b\"]\nlayout = \"channels_time\"";
        let table = b"\"b\",\"a\"\n\"3\",\"1\"\n\"4\",\"2\"\n";
        let tensors = samples(&input(columns), table).expect("samples");
        assert_eq!(tensors[0].data, [1.0, 2.0, 3.0, 4.0]);
        let error = samples(&input(columns), "b;a\n−3;1\n".as_bytes()).expect_err("another sign").to_string();
        assert!(error.contains("line 2 holds `−3`"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_sample_says_why() {
        for (bytes, words) in [
            (b"notes of the day".to_vec(), "it is no numbers (.npy, CSV, or 12 bytes"),
            (b"twelve bytes".to_vec(), "it is no numbers"),
            (Vec::new(), "it is empty, no numbers"),
            (b"1,2\n3,4\n".to_vec(), "rows of 2 numbers, but the model takes 3"),
            (b"1,2,3\n4,five,6\n".to_vec(), "line 2 holds `five`"),
            (b"a,b,c\n4,five,6\n".to_vec(), "line 2 holds `five`"),
            (b"RIFF\x10\0\0\0WEBPVP8 ".to_vec(), "it is a WebP picture, no numbers"),
            (f32s(&[0.0, f32::NAN, 0.0]), "value 1 of the tensor is NaN"),
            (npy("<f4", "False", "(2,)", &f32s(&[0.0; 2])), "the shape [2], but the model takes [1, 3]"),
            (npy("<f4", "True", "(1, 3)", &f32s(&[0.0; 3])), "np.ascontiguousarray"),
            (npy("|O", "False", "(3,)", b"abc"), "`|O`"),
            (npy("<f4", "False", "(3,)", &f32s(&[0.0; 2])), "8 bytes of data"),
        ] {
            let error = samples(&three(), &bytes).expect_err(words).to_string();
            assert!(error.contains(words), "`{error}` does not say `{words}`");
        }
        let picture =
            "name = \"x\"\nshape = [1, 1, 2, 2]\n[picture]\nlayout = \"nchw\"\ncolor = \"gray\"\nmean = 0\nstd = 1";
        let error = samples(&input(picture), b"dear camera").expect_err("no picture").to_string();
        assert!(error.starts_with("it is neither JPEG nor PNG, nor numbers"), "{error}");
    }
}
