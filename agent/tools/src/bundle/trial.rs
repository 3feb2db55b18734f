//! Made-up inputs for a model nobody has described, and what its outputs for them say of how they are to be read.
//!
//! One input shows little: two sigmoids may add up to 1 by chance, and a model that standardises its input divides 0
//! by 0 when it sees nothing. So the inputs vary, and some are far beyond any sample: what is a probability stays one,
//! a logit does not. No IO.

use hedge_inference::bundle::{Input, Layout, PictureInput};
use hedge_inference::task::{OutputKind, Scores, Temperature};
use hedge_inference::{Tensor, Unusable};

/// Colours a camera might see, as pixels.
const COLOURS: [[f32; 3]; 6] = [
    [0.0, 0.0, 0.0],
    [255.0, 255.0, 255.0],
    [230.0, 20.0, 20.0],
    [20.0, 230.0, 20.0],
    [20.0, 20.0, 230.0],
    [128.0, 128.0, 128.0],
];

/// Made-up inputs of each sort.
pub(super) const ORDINARY: usize = 12;

/// Those, and the ones far beyond any sample.
pub(super) const ALL: usize = ORDINARY + 4;

/// Values no normalised sample has.
const FAR: f32 = 1e4;

/// How far off a number between two limits may be, as a share of the upper one.
const ROUNDING: f32 = 0.01;

/// Inputs of the kind the model takes, the same at every call.
pub(super) fn inputs(input: &Input) -> Vec<Tensor> {
    let mut noise = Noise(0x9E37_79B9_7F4A_7C15);
    let count: usize = input.shape.iter().product();
    let mut inputs: Vec<Vec<f32>> = (0..ORDINARY)
        .map(|which| match &input.picture {
            Some(picture) => picture_values(picture, which, &mut noise),
            None => (0..count).map(|at| number(which, at as f32 / count as f32, &mut noise)).collect(),
        })
        .collect();
    inputs.extend([vec![FAR; count], vec![-FAR; count]]);
    inputs.extend([1, 2].map(|_| (0..count).map(|_| FAR * (2.0 * noise.next() - 1.0)).collect()));
    inputs.into_iter().map(|data| Tensor::new(input.shape.clone(), data)).collect()
}

fn picture_values(picture: &PictureInput, which: usize, noise: &mut Noise) -> Vec<f32> {
    let (width, height, channels) = (picture.width, picture.height, picture.mean.len());
    let mut value = |x: u32, y: u32, channel: usize| {
        let pixel = pixel(which, channel, x as f32 / width as f32, y as f32 / height as f32, noise);
        (pixel - picture.mean[channel]) / picture.std[channel]
    };
    let mut values = Vec::with_capacity(channels * width as usize * height as usize);
    match picture.layout {
        Layout::Nchw => {
            for channel in 0..channels {
                (0..height).for_each(|y| values.extend((0..width).map(|x| value(x, y, channel))));
            }
        }
        Layout::Nhwc => {
            for y in 0..height {
                (0..width).for_each(|x| values.extend((0..channels).map(|channel| value(x, y, channel))));
            }
        }
    }
    values
}

/// One pixel of a picture; `x` and `y` go from 0 to 1.
fn pixel(which: usize, channel: usize, x: f32, y: f32, noise: &mut Noise) -> f32 {
    match which {
        0..6 => COLOURS[which][channel],
        6 => 255.0 * [x, y, 1.0 - x][channel],
        7 => COLOURS[usize::from((2.0 * x).fract() < 0.5)][channel],
        8 => COLOURS[if y < 0.5 { 2 } else { 4 }][channel],
        _ => 255.0 * noise.next(),
    }
}

/// One number of a tensor; `place` goes from 0 to 1.
fn number(which: usize, place: f32, noise: &mut Noise) -> f32 {
    match which {
        0 => 0.0,
        1 => 1.0,
        2 => -1.0,
        3 => 2.0 * place - 1.0,
        4 => 1.0 - 2.0 * place,
        5 => f32::from(u8::from(place < 0.5)),
        6 => noise.next(),
        7 => 100.0 * noise.next(),
        8 => 0.1 * (2.0 * noise.next() - 1.0),
        9 => 10.0 * (2.0 * noise.next() - 1.0),
        _ => 3.0 * (2.0 * noise.next() - 1.0),
    }
}

/// Xorshift (Marsaglia 2003): repeatable, and good enough for pictures of nothing.
struct Noise(u64);

impl Noise {
    /// From 0 to 1.
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1_u32 << 24) as f32
    }
}

const LOGITS: OutputKind = OutputKind::Logits { temperature: Temperature::ONE };

/// How outputs that a model gave are to be read, and what they are in words; or why that is for a person to say.
pub(super) fn output_kind(
    outputs: &[Vec<f32>],
    asked: Option<OutputKind>,
) -> Result<(OutputKind, &'static str), String> {
    let is_usable = |output: &&[f32]| output.iter().all(|value| !value.is_nan() && *value != f32::INFINITY);
    let usable: Vec<&[f32]> = outputs.iter().map(Vec::as_slice).filter(is_usable).collect();
    let Some(first) = usable.first() else {
        return Err(format!("it gives no finite numbers for any of the {} inputs it was tried on", outputs.len()));
    };
    if let Some(kind) = asked {
        return match usable.iter().map(|output| read(output, kind)).find(Result::is_ok) {
            Some(_) => Ok((kind, "as --output-kind says")),
            None => Err(format!("it is no {}, as --output-kind says: it gives {}", kind.word(), some(first))),
        };
    }
    let all = |test: &dyn Fn(&[f32]) -> bool| usable.iter().all(|output| test(output));
    let within = |limit: f32| {
        let range = -ROUNDING * limit..=(1.0 + ROUNDING) * limit;
        all(&|output| output.iter().all(|value| range.contains(value)))
    };
    // However far the inputs are: logits would follow them.
    let around_zero = !within(1.0) && all(&|output| output.iter().all(|value| value.abs() <= 1.0 + ROUNDING));
    if around_zero && !all(&is_log_softmax) {
        return Err(format!(
            "it gives numbers from -1 to 1, such as {}: a tanh, or cosines, whose size says nothing of how sure it is. If \
             the largest is the answer, say --output-kind logits; then `hedge-agent bundle calibrate` finds out what they \
             are worth",
            some(first)
        ));
    }
    let one = first.len() == 1;
    let found = if one && within(1.0) {
        (OutputKind::Probabilities, "one probability, of the second label (a sigmoid)")
    } else if one && within(100.0) {
        return Err(format!(
            "it gives numbers from 0 to 100, such as {}: say --output-kind percent if they are the second label's \
             percentages, or --output-kind logits",
            some(first)
        ));
    } else if one {
        (LOGITS, "one logit, of the second label")
    } else if all(&|output| read(output, OutputKind::Probabilities).is_ok() || is_rounded(output)) {
        (OutputKind::Probabilities, "probabilities (a softmax)")
    } else if all(&|output| read(output, OutputKind::Percent).is_ok()) {
        (OutputKind::Percent, "percentages")
    } else if all(&|output| read(output, OutputKind::Bytes).is_ok()) {
        (OutputKind::Bytes, "probabilities in bytes")
    } else if all(&is_log_softmax) {
        (LOGITS, "logarithms of probabilities (a log-softmax), which are read as logits")
    } else if within(1.0) || within(100.0) {
        let limit = if within(1.0) { 1 } else { 100 };
        return Err(format!(
            "it gives each label a number from 0 to {limit}, and these do not add up to {limit}, such as {}: labels \
             that do not exclude each other (a sigmoid each). Hedge answers with one label, so export the model with a \
             softmax; if these are logits after all, say --output-kind logits",
            some(first)
        ));
    } else {
        (LOGITS, "logits")
    };
    let same = |output: &&[f32]| output.iter().zip(*first).all(|(one, other)| (one - other).abs() <= 1e-6);
    if found.0 != LOGITS && usable.iter().all(same) {
        return Err(format!(
            "it gives {} for everything it was tried on, from which nothing can be told: say --output-kind logits, \
             probabilities, percent or bytes",
            some(first)
        ));
    }
    Ok(found)
}

fn read(output: &[f32], kind: OutputKind) -> Result<Scores, Unusable> {
    match output {
        [second] => Scores::read(&kind.of_two(*second), kind),
        _ => Scores::read(output, kind),
    }
}

/// Whether this may be a softmax in steps of 1/256 of so many classes that the smaller ones are rounded away.
fn is_rounded(output: &[f32]) -> bool {
    let on_a_step =
        |value: &f32| (0.0..=1.0).contains(value) && ((value * 256.0) - (value * 256.0).round()).abs() < 0.01;
    output.len() > 128 && output.iter().all(on_a_step)
}

fn is_log_softmax(output: &[f32]) -> bool {
    let sum: f32 = output.iter().map(|value| value.exp()).sum();
    (sum - 1.0).abs() <= ROUNDING
}

/// The first numbers of an output, for people.
fn some(output: &[f32]) -> String {
    let shown: Vec<String> = output.iter().take(4).map(|value| format!("{value:.2}")).collect();
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(outputs: &[&[f32]], expected: OutputKind) {
        let outputs: Vec<Vec<f32>> = outputs.iter().map(|output| output.to_vec()).collect();
        assert_eq!(output_kind(&outputs, None).expect("told").0, expected, "{outputs:?}");
    }

    #[track_caller]
    fn check_asks(outputs: &[&[f32]], words: &str) {
        let outputs: Vec<Vec<f32>> = outputs.iter().map(|output| output.to_vec()).collect();
        let error = output_kind(&outputs, None).expect_err("two readings");
        assert!(error.contains(words) && error.contains("--output-kind"), "{error}");
    }

    #[test]
    fn every_usual_output_is_known_by_what_it_gave() {
        check(&[&[0.2, 0.8], &[1.0, 0.0], &[f32::NAN, f32::NAN]], OutputKind::Probabilities);
        check(&[&[20.0, 80.0], &[100.0, 0.0]], OutputKind::Percent);
        check(&[&[55.0, 200.0], &[255.0, 0.0]], OutputKind::Bytes);
        check(&[&[0.2_f32.ln(), 0.8_f32.ln()], &[0.0, f32::NEG_INFINITY]], LOGITS);
        check(&[&[1.0, 0.0, 0.0], &[7.5, -2.0, 0.1]], LOGITS);
        check(&[&[0.3], &[0.99], &[0.0]], OutputKind::Probabilities);
        check(&[&[0.3], &[-2.0]], LOGITS);
        let mut rounded = vec![0.0; 1000];
        rounded[3] = 0.5;
        let mut sure = vec![0.0; 1000];
        sure[4] = 1.0;
        check(&[&rounded, &sure], OutputKind::Probabilities);
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_asked_about() {
        check_asks(&[&[0.9, 0.8], &[0.5, 0.5]], "do not add up to 1");
        check_asks(&[&[90.0, 80.0], &[50.0, 50.0]], "do not add up to 100");
        check_asks(&[&[30.0], &[99.0]], "from 0 to 100");
        check_asks(&[&[0.9, -0.8, 0.1], &[1.0, -1.0, -1.0]], "from -1 to 1");
        check_asks(&[&[-0.9], &[1.0]], "from -1 to 1");
        check_asks(&[&[0.25, 0.75], &[0.25, 0.75]], "for everything it was tried on");
        check_asks(&[&[0.25], &[0.25]], "for everything it was tried on");
        let nothing = output_kind(&[vec![f32::NAN, 1.0]], None).expect_err("nothing to read");
        assert!(nothing.contains("no finite numbers"), "{nothing}");
    }

    #[test]
    fn a_person_may_say_what_an_output_is_unless_it_cannot_be() {
        let sigmoids = [vec![0.9, 0.8], vec![0.3, 0.1]];
        assert_eq!(output_kind(&sigmoids, Some(LOGITS)).map(|(kind, _)| kind), Ok(LOGITS));
        let error = output_kind(&sigmoids, Some(OutputKind::Percent)).expect_err("cannot be");
        assert!(error.contains("it is no percent") && error.contains("0.90, 0.80"), "{error}");
    }

    #[test]
    fn made_up_inputs_vary_and_are_the_same_every_time() {
        let input = "name = \"x\"\nshape = [1, 8, 8, 3]\n[picture]\nlayout = \"nhwc\"\ncolor = \"rgb\"\nmean = 127.5\nstd = 127.5";
        for text in [input, "name = \"x\"\nshape = [1, 4]"] {
            let input: Input = toml::from_str(text).expect("an input");
            let made = inputs(&input);
            assert_eq!(made, inputs(&input));
            assert!(made.iter().all(|tensor| tensor.data.len() == input.shape.iter().product::<usize>()));
            let different = |at: usize| made[..at].iter().all(|tensor| *tensor != made[at]);
            assert!((0..made.len()).all(different), "{text}");
        }
    }
}
