//! Recognises how a detector says what it found: by the names and shapes of its outputs, then by what it gives.
//!
//! What two readings fit is asked for by the option's name; what is assumed is said. No IO.

mod tried;

use std::fmt;

use anyhow::{Context, bail, ensure};
use hedge_inference::Tensors;
use hedge_inference::bundle::labels::Labels;
use hedge_inference::model::{Outline, Port};

/// From which score a box is shown if nobody says: what suits most detectors.
const USUAL_SHOWN_MIN: f32 = 0.3;

/// How much two boxes of a label may share if nobody says.
const USUAL_IOU_MAX: f32 = 0.6;

/// The scales of most detectors that count from cells.
const USUAL_STRIDES: [&[u16]; 5] = [&[8, 16, 32], &[8, 16, 32, 64], &[4, 8, 16, 32], &[8, 16, 32, 64, 128], &[16, 32]];

/// The boxes of TensorFlow Lite's own step at the end of an SSD; classes, scores and count are called so with :1, :2, :3.
const TFLITE: &str = "TFLite_Detection_PostProcess";

/// For a model that finds things; what it does not say is found out, or asked for.
#[derive(Debug, Default, clap::Args)]
pub struct DetectorArgs {
    /// The output with the boxes, if it is not told by its shape
    #[arg(long, value_name = "NAME", help_heading = "Detectors")]
    pub boxes: Option<String>,
    /// The output with their scores
    #[arg(long, value_name = "NAME", help_heading = "Detectors")]
    pub scores: Option<String>,
    /// The output with the number of each box's class, if the model chooses one
    #[arg(long, value_name = "NAME", help_heading = "Detectors")]
    pub classes: Option<String>,
    /// What the four numbers of a box are
    #[arg(long, value_name = "FORM", value_parser = FORMS, help_heading = "Detectors")]
    pub box_form: Option<String>,
    /// Whether they count pixels of the model's input or shares of it
    #[arg(long, value_name = "UNIT", value_parser = ["pixels", "fraction"], help_heading = "Detectors")]
    pub box_unit: Option<String>,
    /// Pixels from cell to cell of each scale, such as 8,16,32
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Detectors")]
    pub strides: Vec<u16>,
    /// The prior boxes of an SSD: .npy with rows of centre x, centre y, width, height as shares
    #[arg(long, value_name = "FILE.npy", help_heading = "Detectors")]
    pub priors: Option<std::path::PathBuf>,
    /// The number of the first label, if the model chooses classes
    #[arg(long, value_name = "NUMBER", help_heading = "Detectors")]
    pub first_class: Option<usize>,
    /// The score from which a box is shown [default: 0.3]
    #[arg(long, value_name = "0.05..1", help_heading = "Detectors")]
    pub shown_min: Option<f32>,
}

const FORMS: [&str; 7] = ["corners", "corners_yx", "corner_size", "centre_size", "distances", "grid", "deltas"];

/// The `[output]` of a detector's manifest.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Detector {
    boxes: Table,
    form: Option<String>,
    unit: Option<String>,
    strides: Vec<u16>,
    bins: usize,
    pub(super) priors: bool,
    scores: Table,
    score_kind: Option<&'static str>,
    objectness: Option<usize>,
    background: Option<Nothing>,
    /// With the number of the first label, which is only assumed unless somebody told it.
    classes: Option<(Table, usize)>,
    first_told: bool,
    labels: Vec<String>,
    count: Option<String>,
    shown_min: f32,
    iou_max: Option<f32>,
    /// Such models are trained on pictures in a letterbox of gray, from 0 to 1.
    pub(super) yolo: bool,
}

/// The class that is of nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Nothing {
    First,
    Last,
}

/// Columns of an output.
#[derive(Debug, Clone, PartialEq)]
struct Table {
    name: String,
    at: usize,
    /// How many columns the whole output has.
    columns: usize,
}

impl Table {
    /// One column of all rows.
    fn column(&self, outputs: &Tensors, at: usize) -> Vec<f32> {
        let Ok(tensor) = outputs.get(&self.name) else { return Vec::new() };
        let (data, columns) = (tensor.data.as_slice(), self.columns.max(1));
        let rows = data.len() / columns;
        let sides: Vec<usize> = tensor.shape.iter().copied().filter(|side| *side != 1).collect();
        let turned = sides.len() > 1 && sides.last() != Some(&columns) && sides.first() == Some(&columns);
        let at = self.at + at;
        (0..rows).map(|row| if turned { data[at * rows + row] } else { data[row * columns + at] }).collect()
    }
}

/// The sides of an output that are not 1; those that are open are -1.
fn sides(port: &Port) -> Vec<i64> {
    port.shape.iter().flatten().copied().filter(|side| *side != 1).collect()
}

fn is_called(port: &Port, words: &[&str]) -> bool {
    let name = port.name.to_ascii_lowercase();
    words.iter().any(|word| name.contains(word))
}

/// Whether a label stands for the background.
fn is_of_nothing(label: &str) -> bool {
    ["__background__", "background", "_background_", "bg", "???"].contains(&label.to_ascii_lowercase().as_str())
}

impl Detector {
    /// What the outputs' names and shapes say; none if they are not those of a detector.
    pub(super) fn recognised(
        args: &DetectorArgs,
        outline: &Outline,
        labels: Option<&Labels>,
        pixels: (u32, u32),
    ) -> anyhow::Result<Option<Self>> {
        let count = labels.map(|labels| labels.names.len());
        let find = |name: &Option<String>| match name {
            None => Ok(None),
            Some(name) => outline.outputs.iter().find(|port| port.name == *name).map(Some).with_context(|| {
                let known: Vec<String> = outline.outputs.iter().map(Port::to_string).collect();
                format!("there is no output `{name}`; there are {}", known.join(", "))
            }),
        };
        let (boxes, scores, classes) = (find(&args.boxes)?, find(&args.scores)?, find(&args.classes)?);
        let ports: Vec<&Port> = outline.outputs.iter().filter(|port| port.shape.is_some()).collect();
        let alone = boxes.filter(|boxes| scores.is_none_or(|scores| scores == *boxes));
        let table = alone.map_or_else(
            || ports.iter().copied().find_map(|port| Self::one_table(port, count)),
            |port| Self::one_table(port, count),
        );
        let found = match table.filter(|_| alone.is_some() || boxes.is_none()) {
            Some(table) => Some(table),
            None => Self::several(&ports, (boxes, scores, classes), count)?,
        };
        let Some(mut found) = found else { return Ok(None) };
        found.labels = labels.map_or_else(Vec::new, |labels| labels.names.clone());
        found.without_nothing()?;
        found.shown_min = args.shown_min.unwrap_or(found.shown_min);
        found.form = args.box_form.clone().or(found.form);
        found.unit = args.box_unit.clone().or(found.unit);
        found.priors = args.priors.is_some();
        if found.priors {
            found.form = Some("deltas".to_owned());
        }
        if let (Some(first), Some((_, known))) = (args.first_class, &mut found.classes) {
            *known = first;
            found.first_told = true;
        }
        found.strides.clone_from(&args.strides);
        if found.counts_from_cells() && found.strides.is_empty() {
            found.strides = found.usual_strides(&ports, pixels)?;
        }
        Ok(Some(found))
    }

    /// A first label of nothing is the class 0 of a model that counts its things from 1. Where the model leaves nothing
    /// out of its classes, or gives it a score as to the others, it is no label.
    fn without_nothing(&mut self) -> anyhow::Result<()> {
        let Some(label) = self.labels.first().filter(|label| is_of_nothing(label)) else { return Ok(()) };
        let is_left_out = match &self.classes {
            Some((_, 0)) => self.boxes.name.contains(TFLITE),
            Some(_) => false,
            None => !self.yolo && self.background.is_none(),
        };
        ensure!(!is_left_out, "the label `{label}` is of nothing, and no box has it: remove its line");
        if let Some((_, first)) = &mut self.classes {
            *first = 0;
        }
        Ok(())
    }

    fn counts_from_cells(&self) -> bool {
        matches!(self.form.as_deref(), Some("distances" | "grid"))
    }

    /// Everything in one output.
    fn one_table(port: &Port, labels: Option<usize>) -> Option<Self> {
        let sides = sides(port);
        let (rows, last) = match sides.as_slice() {
            [rows, last] => (*rows, *last),
            _ => return None,
        };
        let name = &port.name;
        let whole = |columns: i64| Table { name: name.clone(), at: 0, columns: usize::try_from(columns).unwrap_or(0) };
        let at = |columns: i64, at: usize| Table { at, ..whole(columns) };
        let of_labels = |side: i64, more: i64| {
            labels.and_then(|count| i64::try_from(count).ok()).is_some_and(|count| side == count + more)
        };
        // Seven columns are also those of two labels with objectness, which come with one dimension for the picture.
        let chosen_by_shape = last == 7 && port.shape.as_ref().is_some_and(|shape| shape.len() != 3);
        // One column more than labels is an angle where the columns come first, and objectness only where the rows do.
        for (side, first, objectness) in [(last, 4, None), (last, 5, Some(4)), (rows, 4, None)] {
            if of_labels(side, first) && rows != last && !chosen_by_shape {
                return Some(Self {
                    objectness,
                    iou_max: Some(USUAL_IOU_MAX),
                    yolo: true,
                    ..Self::new(whole(side), at(side, usize::try_from(first).unwrap_or(4)))
                });
            }
        }
        let chosen = |boxes: Table, scores: Table, classes: Table| Self {
            classes: Some((classes, 0)),
            ..Self::new(boxes, scores)
        };
        match (last, port.shape.as_ref().map_or(0, Vec::len)) {
            // x1, y1, x2, y2, score, class.
            (6, _) => {
                Some(Self { yolo: true, form: Some("corners".to_owned()), ..chosen(whole(6), at(6, 4), at(6, 5)) })
            }
            // Picture, class, score, x1, y1, x2, y2, as SSDs of Caffe and OpenVINO give them.
            (7, 4) => Some(Self {
                form: Some("corners".to_owned()),
                unit: Some("fraction".to_owned()),
                classes: Some((at(7, 1), 1)),
                ..Self::new(at(7, 3), at(7, 2))
            }),
            // Picture, x1, y1, x2, y2, class, score.
            (7, _) => {
                Some(Self { yolo: true, form: Some("corners".to_owned()), ..chosen(at(7, 1), at(7, 6), at(7, 5)) })
            }
            _ => None,
        }
    }

    /// Boxes and scores in outputs of their own.
    fn several(
        ports: &[&Port],
        (boxes, scores, classes): (Option<&Port>, Option<&Port>, Option<&Port>),
        labels: Option<usize>,
    ) -> anyhow::Result<Option<Self>> {
        let four = |port: &&&Port| {
            let sides = sides(port);
            match sides.as_slice() {
                [_, last] => *last == 4 || sides[0] == 4,
                [4] => is_called(port, &["box", "loc"]),
                [_, _, 4] => is_called(port, &["box", "loc"]),
                _ => false,
            }
        };
        let fours: Vec<&Port> = ports.iter().filter(four).copied().collect();
        let bins =
            |port: &&&Port| matches!(sides(port).as_slice(), [_, last] if last % 4 == 0 && (20..=160).contains(last));
        let (port, bins) = match (boxes, fours.as_slice()) {
            (Some(port), _) => (port, sides(port).last().map_or(4, |last| *last) / 4),
            (None, [only]) => (*only, 1),
            (None, []) => match ports.iter().filter(bins).copied().collect::<Vec<_>>().as_slice() {
                [only] => (*only, sides(only).last().map_or(4, |last| *last) / 4),
                _ => return Ok(None),
            },
            (None, several) => {
                match several.iter().filter(|port| is_called(port, &["box"])).collect::<Vec<_>>().as_slice() {
                    [only] => (**only, 1),
                    _ => bail!("several outputs may be boxes: {}; name one with --boxes", listed(several)),
                }
            }
        };
        let bins = usize::try_from(bins).unwrap_or(1).max(1);
        let of_boxes = sides(port);
        let rows = match of_boxes.as_slice() {
            [4, rows] if *rows != 4 => *rows,
            [rows, ..] => *rows,
            [] => 1,
        };
        let rest: Vec<&Port> = ports.iter().copied().filter(|other| other.name != port.name).collect();
        let same_rows = |side: &i64| *side == rows || *side < 0 || rows < 0;
        let columns_of = |port: &Port| match sides(port).as_slice() {
            [side] if same_rows(side) => Some(1),
            [first, last] if same_rows(first) => Some(*last),
            [first, last] if same_rows(last) => Some(*first),
            _ => None,
        };
        let one_column = |port: &&&Port| columns_of(port) == Some(1);
        let is_step = |port: &Port, which: &str| port.name.strip_prefix(TFLITE) == Some(which);
        let chosen = classes.or_else(|| {
            let called = |port: &&Port| is_called(port, &["class", "label", "cls", "categor"]) || is_step(port, ":1");
            rest.iter().filter(one_column).copied().find(called)
        });
        let matrix = |port: &&&Port| {
            let wanted = labels.and_then(|count| i64::try_from(count).ok());
            port.is_float()
                && columns_of(port)
                    .is_some_and(|columns| wanted.is_some_and(|count| columns == count || columns == count + 1))
        };
        let score = match scores {
            Some(port) => Some(port),
            None => {
                let many: Vec<&Port> = rest.iter().filter(matrix).copied().collect();
                match (many.as_slice(), chosen) {
                    ([only], None) => Some(*only),
                    ([_, _, ..], None) => {
                        bail!("several outputs may be scores: {}; name one with --scores", listed(&many))
                    }
                    _ => rest.iter().filter(one_column).copied().find(|port| {
                        let called = is_called(port, &["score", "conf", "prob"]) || is_step(port, ":2");
                        port.is_float() && called && Some(*port) != chosen
                    }),
                }
            }
        };
        let Some(score) = score else { return Ok(None) };
        let columns = columns_of(score).unwrap_or(1);
        let table = |port: &Port, columns: i64| Table {
            name: port.name.clone(),
            at: 0,
            columns: usize::try_from(columns).unwrap_or(1),
        };
        let background = chosen.is_none() && labels.is_some_and(|count| usize::try_from(columns) == Ok(count + 1));
        let background = background.then_some(Nothing::First);
        let counts_from_1 = is_called(port, &["detection_boxes"]);
        let tensorflow = counts_from_1 || port.name == TFLITE;
        // torchvision, which knows no batch, has the background at 0.
        let torchvision =
            |port: &Port| port.shape.as_ref().is_some_and(|shape| shape.len() == 1) && is_called(port, &["label"]);
        let found = Self {
            form: if bins > 1 { Some("distances".to_owned()) } else { tensorflow.then(|| "corners_yx".to_owned()) },
            unit: tensorflow.then(|| "fraction".to_owned()),
            bins,
            background,
            classes: chosen.map(|port| (table(port, 1), usize::from(counts_from_1 || torchvision(port)))),
            count: rest
                .iter()
                .find(|port| sides(port).is_empty() && (is_called(port, &["num"]) || is_step(port, ":3")))
                .map(|port| port.name.clone()),
            iou_max: chosen.is_none().then_some(USUAL_IOU_MAX),
            ..Self::new(table(port, i64::try_from(4 * bins)?), table(score, columns))
        };
        Ok(Some(found))
    }

    fn new(boxes: Table, scores: Table) -> Self {
        Self {
            boxes,
            form: None,
            unit: None,
            strides: Vec::new(),
            bins: 1,
            priors: false,
            scores,
            score_kind: None,
            objectness: None,
            background: None,
            classes: None,
            first_told: false,
            labels: Vec::new(),
            count: None,
            shown_min: USUAL_SHOWN_MIN,
            iou_max: None,
            yolo: false,
        }
    }

    fn usual_strides(&self, ports: &[&Port], pixels: (u32, u32)) -> anyhow::Result<Vec<u16>> {
        let port = ports.iter().find(|port| port.name == self.boxes.name);
        let rows = port.map_or(Vec::new(), |port| sides(port)).into_iter().max().unwrap_or(0);
        Self::strides_of(u64::try_from(rows).unwrap_or(0), pixels).with_context(|| {
            format!("`{}` has {rows} rows, which are the cells of no usual scales; say --strides", self.boxes.name)
        })
    }

    fn strides_of(rows: u64, (width, height): (u32, u32)) -> Option<Vec<u16>> {
        let cells = |strides: &&&[u16]| {
            let of = |stride: &u16| {
                u64::from(width.div_ceil((*stride).into())) * u64::from(height.div_ceil((*stride).into()))
            };
            strides.iter().map(of).sum::<u64>() == rows
        };
        USUAL_STRIDES.iter().find(cells).map(|strides| strides.to_vec())
    }

    /// What was found, for people.
    pub(super) fn in_words(&self) -> String {
        let form = self.form.as_deref().unwrap_or("to be found").replace('_', " ");
        let unit = self.unit.as_deref().map_or(String::new(), |unit| format!(" in {unit}"));
        let scores = self.score_kind.unwrap_or("to be found");
        let nms = if self.iou_max.is_some() { "overlaps are removed here" } else { "the model removes overlaps" };
        let nothing = match self.background {
            None => "",
            Some(Nothing::First) => ", the first of nothing",
            Some(Nothing::Last) => ", the last of nothing",
        };
        let first = match (&self.classes, self.labels.first()) {
            (Some((_, first)), Some(label)) => format!("; class {first} is `{label}`"),
            _ => String::new(),
        };
        format!(
            "boxes `{}` as {form}{unit}, scores `{}` as {scores}{nothing}{first}; {nms}; a box is shown from {}",
            self.boxes.name, self.scores.name, self.shown_min
        )
    }
}

fn listed(ports: &[&Port]) -> String {
    ports.iter().map(|port| port.to_string()).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Detector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &str| toml_edit::Value::from(text).to_string().trim().to_owned();
        let at = |table: &Table| if table.at > 0 { format!(", at = {}", table.at) } else { String::new() };
        writeln!(f, "[output]")?;
        write!(f, "boxes = {{ name = {}{}", quoted(&self.boxes.name), at(&self.boxes))?;
        write!(f, ", form = \"{}\"", self.form.as_deref().unwrap_or("corners"))?;
        if let Some(unit) = &self.unit {
            write!(f, ", unit = \"{unit}\"")?;
        }
        if !self.strides.is_empty() {
            let strides = &self.strides;
            write!(f, ", strides = {strides:?}")?;
        }
        if self.bins > 1 {
            write!(f, ", bins = {}", self.bins)?;
        }
        if self.priors {
            write!(f, ", priors = \"priors.npy\"")?;
        }
        write!(f, " }}\nscores = {{ name = {}{}", quoted(&self.scores.name), at(&self.scores))?;
        if let Some(kind) = self.score_kind {
            write!(f, ", kind = \"{kind}\"")?;
        }
        if let Some(objectness) = self.objectness {
            write!(f, ", objectness = {objectness}")?;
        }
        match self.background {
            None => {}
            Some(Nothing::First) => write!(f, ", background = true")?,
            Some(Nothing::Last) => write!(f, ", background = \"last\"")?,
        }
        writeln!(f, " }}")?;
        if let Some((classes, first)) = &self.classes {
            write!(f, "classes = {{ name = {}{}", quoted(&classes.name), at(classes))?;
            writeln!(f, "{} }}", if *first > 0 { format!(", first = {first}") } else { String::new() })?;
        }
        if let Some(count) = &self.count {
            writeln!(f, "count = {}", quoted(count))?;
        }
        if let Some(iou_max) = self.iou_max {
            writeln!(f, "# Of two boxes of a label that share more, the surer one stays.\niou_max = {iou_max}")?;
        }
        writeln!(f, "# From this score on a box is an answer.\nshown_min = {}", self.shown_min)
    }
}
