//! The format of `numpy.save`: a header with type, order and shape, then the numbers.

/// What every such file begins with.
const MAGIC: &[u8] = b"\x93NUMPY";

pub(super) fn is_npy(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Shape and values. The text of the error says what to save instead.
pub(crate) fn read(bytes: &[u8]) -> Result<(Vec<usize>, Vec<f32>), String> {
    let (header, data) = split(bytes).ok_or("the .npy file is cut off")?;
    let field = |name: &str| {
        let rest = header.split_once(&format!("'{name}':"))?.1.trim_start();
        Some(rest)
    };
    let damaged = || "the header of the .npy file cannot be read".to_owned();
    let descr = field("descr").ok_or_else(damaged)?;
    let descr = descr.strip_prefix('\'').and_then(|rest| rest.split('\'').next()).ok_or(
        "the .npy file holds records of several fields; save a plain array of numbers, with .astype('float32')",
    )?;
    let shape = field("shape").and_then(|rest| rest.strip_prefix('(')?.split(')').next()).ok_or_else(damaged)?;
    let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty());
    let shape: Vec<usize> = sizes.map(|size| size.parse().map_err(|_| damaged())).collect::<Result<_, _>>()?;
    if field("fortran_order").is_some_and(|rest| rest.starts_with("True")) && shape.len() > 1 {
        return Err("the .npy file holds its numbers column by column; save np.ascontiguousarray(array)".to_owned());
    }
    let values = shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size)).ok_or_else(damaged)?;
    let (size, number) = number(descr)
        .ok_or_else(|| format!("the .npy file holds `{descr}`; save it as numbers, with .astype('float32')"))?;
    if values.checked_mul(size) != Some(data.len()) {
        return Err(format!("the .npy file has {} bytes of data where its header says {values} numbers", data.len()));
    }
    Ok((shape, data.chunks_exact(size).map(number).collect()))
}

/// The header's text and what follows it.
fn split(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (version, rest) = bytes.strip_prefix(MAGIC)?.split_at_checked(2)?;
    let (length, rest) = if version[0] == 1 {
        let (length, rest) = rest.split_first_chunk::<2>()?;
        (usize::from(u16::from_le_bytes(*length)), rest)
    } else {
        let (length, rest) = rest.split_first_chunk::<4>()?;
        (usize::try_from(u32::from_le_bytes(*length)).ok()?, rest)
    };
    let (header, data) = rest.split_at_checked(length)?;
    Some((std::str::from_utf8(header).ok()?, data))
}

/// Reads the bytes of one number.
type Number = fn(&[u8]) -> f32;

/// The bytes of one number and how it is read, by numpy's word for it: `<f4`.
#[expect(clippy::cast_possible_truncation, reason = "the model takes f32, whatever was saved")]
fn number(descr: &str) -> Option<(usize, Number)> {
    macro_rules! read {
        ($type:ty, $from:ident) => {
            Some((size_of::<$type>(), |bytes| <$type>::$from(bytes.try_into().unwrap_or_default()) as f32))
        };
    }
    match descr {
        "<f4" | "=f4" => read!(f32, from_le_bytes),
        ">f4" => read!(f32, from_be_bytes),
        "<f8" | "=f8" => read!(f64, from_le_bytes),
        ">f8" => read!(f64, from_be_bytes),
        "<f2" | "=f2" => Some((2, |bytes| half(u16::from_le_bytes(bytes.try_into().unwrap_or_default())))),
        "|u1" | "|b1" | "<u1" => read!(u8, from_le_bytes),
        "|i1" | "<i1" => read!(i8, from_le_bytes),
        "<u2" => read!(u16, from_le_bytes),
        "<i2" => read!(i16, from_le_bytes),
        "<u4" => read!(u32, from_le_bytes),
        "<i4" => read!(i32, from_le_bytes),
        "<u8" => read!(u64, from_le_bytes),
        "<i8" => read!(i64, from_le_bytes),
        _ => None,
    }
}

/// A float16 (IEEE 754 binary16).
fn half(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (bits >> 15, i32::from(bits >> 10 & 0x1F), f32::from(bits & 0x3FF));
    let size = match exponent {
        0 => fraction * 2_f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1.0 + fraction / 1024.0) * 2_f32.powi(exponent - 15),
    };
    if sign == 0 { size } else { -size }
}
