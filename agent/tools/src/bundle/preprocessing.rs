//! How a model wants its pictures, as the files say it that libraries put beside a model: timm's `config.json`, and
//! the `preprocessor_config.json` of transformers.

use std::fmt;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use super::init::Preset;

/// These are a page long; a file larger than this is another.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Parts of a number in a manifest: enough for any f32 that is meant, few enough to leave out what arithmetic adds.
const DIGITS: f64 = 1e5;

/// What the files say. What none says is `None`.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Preprocessing {
    /// The files' names, for the manifest to say where its numbers are from.
    pub(super) from: Vec<String>,
    /// Width and height of the model's input.
    pub(super) size: Option<(u16, u16)>,
    resize: Option<&'static str>,
    pub(super) fit: Option<&'static str>,
    crop: Option<f64>,
    /// In pixel units, one for each channel or one for all.
    mean: Option<Vec<f64>>,
    std: Option<Vec<f64>>,
    pub(super) bgr: bool,
}

/// What holds where nobody says anything else.
#[derive(Clone, Copy)]
pub(super) struct Usual {
    preset: Preset,
    fit: &'static str,
    pad: u8,
}

impl Usual {
    pub(super) const CLASSIFIER: Self = Self { preset: Preset::Imagenet, fit: "centre_crop", pad: 0 };
    /// Whole photos in gray, from 0 to 1.
    pub(super) const YOLO: Self = Self { preset: Preset::Unit, fit: "letterbox", pad: 114 };
    pub(super) const DETECTOR: Self = Self { preset: Preset::Unit, fit: "letterbox", pad: 0 };
    /// A model that takes bytes has the rest of it inside.
    pub(super) const BYTES: Self = Self { preset: Preset::Raw, fit: "stretch", pad: 0 };
}

/// The `[input.picture]` of a manifest.
pub(super) struct PictureLines {
    from: String,
    layout: &'static str,
    color: &'static str,
    resize: &'static str,
    fit: &'static str,
    pad: Option<u8>,
    crop: f64,
    mean: String,
    std: String,
}

/// timm: at the top, or below `pretrained_cfg`.
#[derive(Deserialize)]
struct Timm {
    pretrained_cfg: Option<TimmFields>,
    #[serde(flatten)]
    top: TimmFields,
}

#[derive(Default, Deserialize)]
struct TimmFields {
    /// Channels, height, width.
    input_size: Option<[u16; 3]>,
    interpolation: Option<String>,
    crop_pct: Option<f64>,
    crop_mode: Option<String>,
    mean: Option<Vec<f64>>,
    std: Option<Vec<f64>>,
}

/// transformers.
#[derive(Deserialize)]
#[serde(default)]
struct Transformers {
    do_resize: bool,
    size: Option<Size>,
    resample: Option<u8>,
    do_center_crop: bool,
    crop_size: Option<Size>,
    crop_pct: Option<f64>,
    do_rescale: bool,
    rescale_factor: f64,
    rescale_offset: bool,
    do_normalize: Option<bool>,
    image_mean: Option<Numbers>,
    image_std: Option<Numbers>,
    do_flip_channel_order: bool,
}

impl Default for Transformers {
    fn default() -> Self {
        Self {
            do_resize: true,
            size: None,
            resample: None,
            do_center_crop: false,
            crop_size: None,
            crop_pct: None,
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            rescale_offset: false,
            do_normalize: None,
            image_mean: None,
            image_std: None,
            do_flip_channel_order: false,
        }
    }
}

/// A size as transformers write it.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Size {
    Square(u16),
    Sides { width: u16, height: u16 },
    Shortest { shortest_edge: u16 },
    Pair([u16; 2]),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Numbers {
    One(f64),
    Each(Vec<f64>),
}

impl Numbers {
    fn each(self) -> Vec<f64> {
        match self {
            Self::One(number) => vec![number],
            Self::Each(numbers) => numbers,
        }
    }
}

impl Preprocessing {
    /// Reads what lies beside the model, or above its folder `onnx`, where exports for the web lie. The picture's own
    /// file goes before the model's.
    pub(super) fn beside(model: &Path) -> anyhow::Result<Self> {
        let folder = model.parent().unwrap_or(Path::new(""));
        let folders = match (folder.file_name(), folder.parent()) {
            (Some(name), Some(above)) if name == "onnx" => vec![folder, above],
            _ => vec![folder],
        };
        let mut all = Self::default();
        for (name, read) in
            [("preprocessor_config.json", Self::from_transformers as fn(&str) -> _), ("config.json", Self::from_timm)]
        {
            let Some(path) = folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file()) else {
                continue;
            };
            let found = read_small(&path).and_then(|text| read(&text)).with_context(|| {
                format!("{}: move it away to say everything with --preset, --crop and the manifest", path.display())
            })?;
            all.add(found, name);
        }
        Ok(all)
    }

    /// Takes over what is not said yet.
    fn add(&mut self, other: Self, name: &str) {
        let before = self.clone();
        self.size = self.size.or(other.size);
        self.resize = self.resize.or(other.resize);
        // A fit and its crop belong together, and so do a mean and its deviation.
        if self.fit.is_none() && self.crop.is_none() {
            (self.fit, self.crop) = (other.fit, other.crop);
        }
        if self.mean.is_none() && self.std.is_none() {
            (self.mean, self.std) = (other.mean, other.std);
        }
        self.bgr |= other.bgr;
        if *self != before {
            self.from.push(name.to_owned());
        }
    }

    fn from_timm(text: &str) -> anyhow::Result<Self> {
        let Timm { pretrained_cfg, top } = serde_json::from_str(text)?;
        let TimmFields { input_size, interpolation, crop_pct, crop_mode, mean, std } = pretrained_cfg.unwrap_or(top);
        let pixels = |numbers: Vec<f64>| numbers.iter().map(|number| number * 255.0).collect();
        let fit = crop_pct.map(|_| if crop_mode.as_deref() == Some("squash") { "stretch" } else { "centre_crop" });
        Ok(Self {
            size: input_size.map(|[_, height, width]| (width, height)),
            resize: interpolation.and_then(|name| ["bicubic", "bilinear"].into_iter().find(|known| *known == name)),
            fit,
            crop: crop_pct.map(|share| checked_crop("crop_pct", share)).transpose()?,
            mean: mean.map(pixels),
            std: std.map(pixels),
            ..Self::default()
        })
    }

    fn from_transformers(text: &str) -> anyhow::Result<Self> {
        let config: Transformers = serde_json::from_str(text)?;
        let (size, fit, crop) = config.geometry()?;
        let bgr = config.do_flip_channel_order;
        let resize = match config.resample {
            Some(2) => Some("bilinear"),
            Some(3) => Some("bicubic"),
            _ => None,
        };
        let (mean, std) = config.numbers()?;
        Ok(Self { from: Vec::new(), size, resize, fit, crop, mean, std, bgr })
    }
}

/// Width and height, `fit` and `crop`.
type Geometry = (Option<(u16, u16)>, Option<&'static str>, Option<f64>);

/// Mean and deviation in pixel units.
type PixelNumbers = (Option<Vec<f64>>, Option<Vec<f64>>);

impl Transformers {
    fn geometry(&self) -> anyhow::Result<Geometry> {
        let sides = |size: Size| match size {
            Size::Square(side) | Size::Shortest { shortest_edge: side } => (side, side),
            Size::Sides { width, height } => (width, height),
            Size::Pair([height, width]) => (width, height),
        };
        let Some(resized) = self.size.filter(|_| self.do_resize) else {
            let cropped = self.crop_size.filter(|_| self.do_center_crop).map(sides);
            return Ok((cropped, None, None));
        };
        // A number for each side stretches; one for the shorter side keeps proportions.
        let stretched = if matches!(resized, Size::Sides { .. } | Size::Pair(_)) { "stretch" } else { "centre_crop" };
        let whole = sides(resized);
        if let Some(share) = self.crop_pct {
            // As ConvNeXt does it: large pictures are stretched whole.
            let crops = whole.0.min(whole.1) < 384;
            let crop = if crops { checked_crop("crop_pct", share)? } else { 1.0 };
            return Ok((Some(whole), Some(if crops { "centre_crop" } else { "stretch" }), Some(crop)));
        }
        if !self.do_center_crop {
            // Many write one number for both sides, and mean a stretched square.
            let fit = if matches!(resized, Size::Shortest { .. }) { None } else { Some("stretch") };
            return Ok((Some(whole), fit, fit.map(|_| 1.0)));
        }
        let cropped = self.crop_size.map_or(whole, sides);
        let share = f64::from(cropped.0.min(cropped.1)) / f64::from(whole.0.min(whole.1).max(1));
        Ok((Some(cropped), Some(stretched), Some(checked_crop("crop_size / size", share)?)))
    }

    /// The model gets (pixel × factor − offset − mean) / std.
    fn numbers(self) -> anyhow::Result<PixelNumbers> {
        let factor = if self.do_rescale { self.rescale_factor } else { 1.0 };
        ensure!(factor.is_finite() && factor > 0.0, "`rescale_factor` = {factor} is not above 0");
        let offset = if self.do_rescale && self.rescale_offset { 1.0 } else { 0.0 };
        let (mean, std) = match (self.do_normalize, self.image_mean, self.image_std) {
            (None | Some(true), Some(mean), Some(std)) => (mean.each(), std.each()),
            (Some(true), _, _) => bail!("it has `do_normalize`, but not both `image_mean` and `image_std`"),
            _ => (vec![0.0], vec![1.0]),
        };
        let mean = mean.iter().map(|mean| (mean + offset) / factor).collect();
        let std = std.iter().map(|std| std / factor).collect();
        Ok((Some(mean), Some(std)))
    }
}

impl PictureLines {
    /// For a model that takes pictures so. What the command line says goes before the files, these before what is
    /// usual.
    pub(super) fn new(
        layout: &'static str,
        color: &'static str,
        found: &Preprocessing,
        (usual, preset, crop): (Usual, Option<Preset>, Option<f64>),
    ) -> anyhow::Result<Self> {
        let Usual { preset: usual, fit: usual_fit, pad } = usual;
        let usual = if color == "gray" { Preset::Unit } else { usual };
        let in_files = found.mean.as_ref().zip(found.std.as_ref()).filter(|_| preset.is_none());
        let (mean, std) = match in_files {
            Some((mean, std)) => (numbers("mean", mean, color)?, numbers("std", std, color)?),
            None => {
                let (mean, std) = preset.unwrap_or(usual).numbers();
                (mean.to_owned(), std.to_owned())
            }
        };
        let usual_crop = if in_files.is_some() { 1.0 } else { preset.unwrap_or(usual).crop() };
        let crop = crop.map(|share| checked_crop("--crop", share)).transpose()?;
        let crop = crop.or(found.crop).unwrap_or(usual_crop);
        let color = if found.bgr && color == "rgb" { "bgr" } else { color };
        let fit = found.fit.unwrap_or(usual_fit);
        let resize = found.resize.unwrap_or(if fit.starts_with("letterbox") { "bilinear" } else { "bicubic" });
        let pad = fit.starts_with("letterbox").then_some(pad);
        Ok(Self { from: found.from.join(" and "), layout, color, resize, fit, pad, crop, mean, std })
    }
}

impl PictureLines {
    pub(super) fn layout(&self) -> &'static str {
        self.layout
    }

    /// Pixels as they are are bytes from -128 for a model that takes bytes with a sign.
    pub(super) fn with_a_sign(mut self) -> Self {
        if self.mean == "0.0" && self.std == "1.0" {
            self.mean = "128.0".to_owned();
        }
        self
    }
}

impl fmt::Display for PictureLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, layout, color, resize, fit, pad, crop, mean, std } = self;
        writeln!(f, "# value = (pixel - mean) / std, with pixels from 0 to 255")?;
        if !from.is_empty() {
            writeln!(f, "# From {from} beside the model.")?;
        }
        writeln!(
            f,
            "[input.picture]\nlayout = \"{layout}\"\ncolor = \"{color}\"\nresize = \"{resize}\"\nfit = \"{fit}\""
        )?;
        if let Some(pad) = pad {
            writeln!(f, "# The pixels around the picture.\npad = {pad}")?;
        }
        if *crop < 1.0 {
            writeln!(f, "# The middle share that the model sees: 0.875 is \"resize to 256, crop 224\".")?;
            writeln!(f, "crop = {crop}")?;
        }
        writeln!(f, "mean = {mean}\nstd = {std}\n")
    }
}

/// A share above 0 and at most 1, said by `field`.
fn checked_crop(field: &str, share: f64) -> anyhow::Result<f64> {
    ensure!(share > 0.0 && share <= 1.0, "`{field}` = {share} is not a share of the picture: above 0 and at most 1");
    Ok((share * DIGITS).round() / DIGITS)
}

/// One number if it holds for all channels, else one for each, without what arithmetic added to them.
fn numbers(field: &str, values: &[f64], color: &str) -> anyhow::Result<String> {
    let channels = if color == "gray" { 1 } else { 3 };
    ensure!(
        values.len() == 1 || values.len() == channels,
        "the files beside the model give {} numbers as `{field}`, but the model takes {channels} channels; say --preset",
        values.len()
    );
    let rounded: Vec<f64> = values.iter().map(|value| (value * DIGITS).round() / DIGITS).collect();
    Ok(match rounded.as_slice() {
        [first, rest @ ..] if rest.iter().all(|other| other == first) => format!("{first:?}"),
        each => format!("{each:?}"),
    })
}

fn read_small(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::metadata(path)?.len();
    ensure!(bytes <= FILE_BYTES_MAX, "it has {bytes} bytes, which is too long for what it should be");
    Ok(std::fs::read_to_string(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines for a colour model of NCHW beside which these files lie.
    fn lines(
        files: &[(&str, &str)],
        preset: Option<Preset>,
        crop: Option<f64>,
    ) -> anyhow::Result<(Preprocessing, String)> {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            std::fs::create_dir_all(folder.path().join("onnx")).expect("a folder");
            std::fs::write(folder.path().join(name), text).expect("written");
        }
        let found = Preprocessing::beside(&folder.path().join("onnx/model.onnx"))?;
        let lines = PictureLines::new("nchw", "rgb", &found, (Usual::CLASSIFIER, preset, crop))?.to_string();
        Ok((found, lines.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n")))
    }

    #[track_caller]
    fn check(name: &str, text: &str, size: Option<(u16, u16)>, expected: &str) {
        let (found, lines) = lines(&[(name, text)], None, None).expect("read");
        let rest = lines.strip_prefix("[input.picture]\nlayout = \"nchw\"\n").expect("a picture");
        assert_eq!((found.size, rest.trim_end()), (size, expected));
    }

    const RESNET: &str = r#"{ "crop_pct": 0.875, "do_normalize": true, "do_resize": true, "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225], "resample": 3, "size": 224 }"#;

    #[test]
    fn what_the_files_beside_a_model_say_of_its_pictures_goes_into_the_manifest() {
        const IMAGENET: &str = "mean = [123.675, 116.28, 103.53]\nstd = [58.395, 57.12, 57.375]";
        let of = |color: &str, resize: &str, fit: &str, rest: &str| {
            format!("color = \"{color}\"\nresize = \"{resize}\"\nfit = \"{fit}\"\n{rest}")
        };
        let square = |side| Some((side, side));
        let preprocessor = "preprocessor_config.json";
        let expected = of("rgb", "bicubic", "centre_crop", &format!("crop = 0.875\n{IMAGENET}"));
        check(preprocessor, RESNET, square(224), &expected);
        check(
            preprocessor,
            r#"{ "do_normalize": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
                "resample": 2, "size": { "height": 48, "width": 192 } }"#,
            Some((192, 48)),
            &of("rgb", "bilinear", "stretch", "mean = 127.5\nstd = 127.5"),
        );
        check(
            preprocessor,
            r#"{ "crop_size": { "height": 224, "width": 224 }, "do_center_crop": true, "do_normalize": true,
                "do_rescale": true, "rescale_factor": 0.00392156862745098, "image_mean": [0.485, 0.456, 0.406],
                "image_std": [0.229, 0.224, 0.225], "resample": 2, "size": { "shortest_edge": 256 } }"#,
            square(224),
            &of("rgb", "bilinear", "centre_crop", &format!("crop = 0.875\n{IMAGENET}")),
        );
        check(
            preprocessor,
            r#"{ "crop_size": { "height": 256, "width": 256 }, "do_center_crop": true, "do_flip_channel_order": true,
                "resample": 2, "size": { "shortest_edge": 288 } }"#,
            square(256),
            &of("bgr", "bilinear", "centre_crop", "crop = 0.88889\nmean = 0.0\nstd = 255.0"),
        );
        let fields = r#""input_size": [3, 240, 256], "interpolation": "bilinear", "crop_pct": 0.95, "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]"#;
        for text in [
            format!(r#"{{ "architecture": "a", "num_classes": 9, "pretrained_cfg": {{ {fields}, "tag": "x" }} }}"#),
            format!(r#"{{ "num_classes": 9, {fields}, "classifier": "fc" }}"#),
        ] {
            let expected = of("rgb", "bilinear", "centre_crop", &format!("crop = 0.95\n{IMAGENET}"));
            check("config.json", &text, Some((256, 240)), &expected);
            check("onnx/config.json", &text, Some((256, 240)), &expected);
        }
        // A model's own description says nothing of pictures; then the usual holds.
        let expected = of("rgb", "bicubic", "centre_crop", &format!("crop = 0.875\n{IMAGENET}"));
        check(
            "config.json",
            r#"{ "model_type": "vit", "image_size": 224, "id2label": { "0": "a" } }"#,
            None,
            &expected,
        );
    }

    #[test]
    fn the_command_line_goes_before_the_files_and_these_before_the_usual() {
        let files = [("preprocessor_config.json", RESNET)];
        let said = lines(&files, Some(Preset::MinusOneOne), Some(0.9)).expect("read").1;
        assert!(said.contains("crop = 0.9\nmean = 127.5\nstd = 127.5"), "{said}");
        let said = lines(&files, Some(Preset::MinusOneOne), None).expect("read").1;
        assert!(said.contains("crop = 0.875\nmean = 127.5"), "{said}");
        let said = lines(&[], Some(Preset::Unit), None).expect("read").1;
        assert!(!said.contains("crop ="), "{said}");
        let whole = lines(&files, None, Some(1.0)).expect("read").1;
        assert!(!whole.contains("crop ="), "{whole}");
    }

    #[test]
    fn a_file_that_cannot_be_meant_is_named_with_what_to_do() {
        for (text, words) in [
            ("{", "EOF while parsing"),
            (r#"{ "size": 224, "crop_pct": 87.5 }"#, "`crop_pct` = 87.5 is not a share"),
            (r#"{ "size": 224, "do_normalize": true }"#, "not both `image_mean` and `image_std`"),
            (r#"{ "rescale_factor": 0 }"#, "not above 0"),
        ] {
            let error = format!("{:#}", lines(&[("preprocessor_config.json", text)], None, None).expect_err(words));
            assert!(error.contains(words) && error.contains("preprocessor_config.json: move it away"), "{error}");
        }
        let two = r#"{ "size": 224, "image_mean": [0.5, 0.5], "image_std": [0.5, 0.5] }"#;
        let error = lines(&[("preprocessor_config.json", two)], None, None).expect_err("refused").to_string();
        assert!(error.contains("2 numbers as `mean`, but the model takes 3 channels; say --preset"), "{error}");
        let error = lines(&[], None, Some(224.0)).expect_err("refused").to_string();
        assert!(error.contains("`--crop` = 224 is not a share"), "{error}");
    }
}
