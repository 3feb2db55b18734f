//! Which columns of a detector's outputs are what, as its manifest says it.

use serde::{Deserialize, Deserializer};

use crate::inside::BundleFile;

/// Where the boxes are and what their numbers mean.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "BoxFields")]
pub(crate) struct BoxColumns {
    /// Several if each scale has an output of its own; their rows follow each other.
    pub(crate) names: Vec<String>,
    /// The first of their columns.
    pub(crate) at: usize,
    pub(crate) form: Form,
    pub(crate) unit: Unit,
    /// Pixels from cell to cell of each scale, in the order of the rows; for the forms that count from cells.
    pub(crate) strides: Vec<u16>,
    /// Numbers of a distance that is a mean over bins; 1 if it is one number.
    pub(crate) bins: usize,
    /// For the form `deltas`.
    pub(crate) priors: Option<Priors>,
}

/// The boxes that a model of the form `deltas` shifts and stretches.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Priors {
    /// `.npy`, rows of centre x, centre y, width, height as fractions.
    pub(crate) file: BundleFile,
    pub(crate) variances: [f32; 2],
    /// Filled when the bundle is opened.
    pub(crate) rows: Vec<[f32; 4]>,
}

/// What the four numbers of a box are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Form {
    /// Left, top, right, bottom.
    Corners,
    /// Top, left, bottom, right.
    CornersYx,
    /// Left, top, width, height.
    CornerSize,
    /// Centre x, centre y, width, height.
    CentreSize,
    /// From a cell's centre to the left, top, right, bottom, in strides.
    Distances,
    /// Centre from a cell's corner in strides, logarithms of width and height in strides.
    Grid,
    /// Shifts and logarithms of stretches of prior boxes.
    Deltas,
}

/// What the numbers of a box count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    /// Pixels of the model's input.
    #[default]
    Pixels,
    /// Shares of the model's input.
    Fraction,
}

/// Where the scores are.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScoreColumns {
    #[serde(rename = "name", deserialize_with = "names")]
    pub(crate) names: Vec<String>,
    /// The first of their columns.
    #[serde(default)]
    pub(crate) at: usize,
    #[serde(default)]
    pub(crate) kind: ScoreKind,
    /// The column with the score that there is anything at all.
    pub(crate) objectness: Option<usize>,
    /// The class that is "nothing": `true` or `"first"`, or `"last"`.
    #[serde(default)]
    pub(crate) background: Background,
}

/// Which class of a row is "nothing".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "BackgroundField")]
pub(crate) enum Background {
    #[default]
    None,
    First,
    Last,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum BackgroundField {
    IsThere(bool),
    Place(String),
}

impl TryFrom<BackgroundField> for Background {
    type Error = &'static str;

    fn try_from(field: BackgroundField) -> Result<Self, Self::Error> {
        match field {
            BackgroundField::IsThere(false) => Ok(Self::None),
            BackgroundField::IsThere(true) => Ok(Self::First),
            BackgroundField::Place(place) if place == "first" => Ok(Self::First),
            BackgroundField::Place(place) if place == "last" => Ok(Self::Last),
            BackgroundField::Place(_) => Err("`background` is true, \"first\" or \"last\""),
        }
    }
}

/// What the scores are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ScoreKind {
    #[default]
    Probabilities,
    /// To be squashed one by one.
    Sigmoid,
    /// To be squashed together.
    Softmax,
}

/// Where the model says which class a row is of.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClassColumn {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) at: usize,
    /// The number of the first label.
    #[serde(default)]
    pub(crate) first: usize,
}

/// One name, or a list of them.
fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Names {
        One(String),
        Several(Vec<String>),
    }
    Ok(match Names::deserialize(deserializer)? {
        Names::One(name) => vec![name],
        Names::Several(names) => names,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BoxFields {
    #[serde(rename = "name", deserialize_with = "names")]
    names: Vec<String>,
    #[serde(default)]
    at: usize,
    form: Form,
    #[serde(default)]
    unit: Unit,
    #[serde(default)]
    strides: Vec<u16>,
    #[serde(default = "one")]
    bins: usize,
    priors: Option<BundleFile>,
    #[serde(default = "usual_variances")]
    variances: [f32; 2],
}

fn one() -> usize {
    1
}

/// Of SSD's authors, and nearly everybody since.
fn usual_variances() -> [f32; 2] {
    [0.1, 0.2]
}

impl TryFrom<BoxFields> for BoxColumns {
    type Error = String;

    fn try_from(fields: BoxFields) -> Result<Self, String> {
        let BoxFields { names, at, form, unit, strides, bins, priors, variances } = fields;
        let counts_from_cells = matches!(form, Form::Distances | Form::Grid);
        if counts_from_cells == strides.is_empty() || strides.contains(&0) {
            return Err("`boxes.strides` belongs to the forms `distances` and `grid`, such as [8, 16, 32]".into());
        }
        if (form == Form::Deltas) != priors.is_some() {
            return Err(
                "`boxes.priors` belongs to the form `deltas`: an .npy file of centre x, centre y, width, height".into(),
            );
        }
        if bins == 0 || bins > 1 && form != Form::Distances {
            return Err("`boxes.bins` is the count of numbers of one distance, for the form `distances`".into());
        }
        let priors = priors.map(|file| Priors { file, variances, rows: Vec::new() });
        Ok(Self { names, at, form, unit, strides, bins, priors })
    }
}
