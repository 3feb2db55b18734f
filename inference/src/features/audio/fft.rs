//! The discrete Fourier transform of one frame (Cooley and Tukey, 1965), for every length without large prime factors.
//!
//! Ours, because a frame has a few hundred samples and 50 of them make a sample: a library with code for every
//! processor adds 370 KB to an agent that is upgraded over phone links, and saves a tenth of a millisecond.

/// The largest prime factor: each costs its square.
pub(super) const FACTOR_MAX: usize = 31;

/// The smallest prime factor.
pub(super) fn factor(length: usize) -> usize {
    (2..).take_while(|factor| factor * factor <= length).find(|factor| length.is_multiple_of(*factor)).unwrap_or(length)
}

type Complex = (f64, f64);

/// Transforms of one length.
pub(super) struct Fft {
    /// `exp(-2πi·k/length)`.
    roots: Vec<Complex>,
    output: Vec<Complex>,
    column: Vec<Complex>,
}

impl Fft {
    pub(super) fn new(length: usize) -> Self {
        let root = |k: usize| {
            let (sin, cos) = (std::f64::consts::TAU * k as f64 / length as f64).sin_cos();
            (cos, -sin)
        };
        Self { roots: (0..length).map(root).collect(), output: vec![(0.0, 0.0); length], column: Vec::new() }
    }

    /// The power of each frequency from 0 to half of the sample rate. `frame` has this transform's length.
    pub(super) fn power(&mut self, frame: &[f64]) -> impl Iterator<Item = f64> {
        let Self { roots, output, column } = self;
        step(roots, frame, 1, output, column);
        output.iter().take(roots.len() / 2 + 1).map(|(re, im)| re * re + im * im)
    }
}

/// Transforms every `stride`th value of `input`: first those of each remainder by a prime factor, then these together.
fn step(roots: &[Complex], input: &[f64], stride: usize, output: &mut [Complex], column: &mut Vec<Complex>) {
    let length = output.len();
    if length <= 1 {
        output.iter_mut().zip(input).for_each(|(output, input)| *output = (*input, 0.0));
        return;
    }
    let radix = factor(length);
    let part = length / radix;
    for (remainder, output) in output.chunks_exact_mut(part).enumerate() {
        step(roots, &input[remainder * stride..], stride * radix, output, column);
    }
    for k in 0..part {
        column.clear();
        column.extend((0..radix).map(|r| times(output[r * part + k], roots[k * r * stride])));
        for q in 0..radix {
            let turned = column.iter().enumerate().map(|(r, one)| times(*one, roots[q * r % radix * part * stride]));
            output[q * part + k] = turned.fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        }
    }
}

fn times((a, b): Complex, (c, d): Complex) -> Complex {
    (a * c - b * d, a * d + b * c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_transform_by_its_definition() {
        for length in [1, 2, 3, 8, 30, 31, 100, 256, 400, 961] {
            let frame: Vec<f64> = (0..length).map(|at| ((at * at + 3 * at) % 17) as f64 / 8.0 - 1.0).collect();
            let by_definition = |k: usize| {
                let terms = frame.iter().enumerate().map(|(at, value)| {
                    let angle = std::f64::consts::TAU * ((k * at) % length) as f64 / length as f64;
                    (value * angle.cos(), value * angle.sin())
                });
                let sum = terms.fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
                sum.0 * sum.0 + sum.1 * sum.1
            };
            let powers: Vec<f64> = Fft::new(length).power(&frame).collect();
            assert_eq!(powers.len(), length / 2 + 1);
            for (k, power) in powers.iter().enumerate() {
                let expected = by_definition(k);
                assert!((power - expected).abs() <= 1e-9 * (1.0 + expected), "{length}: {k}: {power}, not {expected}");
            }
        }
    }
}
