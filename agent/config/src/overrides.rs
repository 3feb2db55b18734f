//! `HEDGE_…` variables of the environment, each one value of the file.

/// One variable that stands for a value of the file: `HEDGE_BROKER__URL` for `url` in `[broker]`.
pub struct Override {
    pub variable: String,
    /// Names from the outermost to the value's own.
    pub path: Vec<String>,
    value: toml::Value,
}

impl Override {
    /// `None` for a variable without the prefix.
    #[must_use]
    pub fn new(prefix: &str, variable: &str, value: &str) -> Option<Self> {
        let path = variable.strip_prefix(prefix)?;
        // A value that reads as TOML is taken as such; anything else is a text.
        let value = toml::from_str::<toml::Table>(&format!("value = {value}"))
            .ok()
            .and_then(|mut table| table.remove("value"))
            .unwrap_or_else(|| toml::Value::String(value.to_owned()));
        let path = path.split("__").map(str::to_lowercase).collect();
        Some(Self { variable: variable.to_owned(), path, value })
    }

    pub(super) fn apply(&self, table: &mut toml::Table) {
        self.apply_below(0, table);
    }

    /// Sets the value in a table that is `depth` names further in than the file.
    pub fn apply_below(&self, depth: usize, table: &mut toml::Table) {
        let Some((last, parents)) = self.path.get(depth..).and_then(<[String]>::split_last) else { return };
        let mut table = table;
        for parent in parents {
            let entry = table.entry(parent.clone()).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if !entry.is_table() {
                *entry = toml::Value::Table(toml::Table::new());
            }
            let toml::Value::Table(inner) = entry else { return };
            table = inner;
        }
        table.insert(last.clone(), self.value.clone());
    }
}

/// A variable that names no setting: another program's, a container's list of services, or a setting misspelt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoSetting {
    pub variable: String,
    pub reason: String,
    /// It can hardly be anybody else's.
    pub is_misspelt: bool,
}

impl Override {
    /// Why this names no setting, if that is what is wrong: `problem` is what was said of it.
    pub(super) fn no_setting(&self, problem: &str) -> Option<NoSetting> {
        let (first, rest) = self.path.split_first()?;
        let none =
            |reason: String, is_misspelt| Some(NoSetting { variable: self.variable.clone(), reason, is_misspelt });
        if first == "model" || first == "source" {
            return none(format!("[[{first}]] is set in the file only"), !rest.is_empty());
        }
        if let Some(unknown) = problem.strip_prefix("unknown field `") {
            let (name, known) = unknown.split_once('`').unwrap_or((unknown, ""));
            if !self.path.iter().any(|part| part == name) {
                return None;
            }
            let near = known.split('`').skip(1).step_by(2).find(|known| is_near(name, known));
            let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            return none(
                format!("no setting is named `{}`{hint}", self.path.join(".")),
                !rest.is_empty() || near.is_some(),
            );
        }
        // A table where this has a value: its fields are the settings.
        let is_section = rest.is_empty() && problem.ends_with("expected a table of fields");
        is_section.then(|| none(format!("[{first}] is a section; name a field of it: {}__…", self.variable), true))?
    }
}

/// Whether one is the other with at most two letters wrong, missing or too many.
fn is_near(one: &str, other: &str) -> bool {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.bytes().enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.bytes().enumerate() {
            let here = if a == b { before } else { 1 + before.min(row[j]).min(row[j + 1]) };
            before = std::mem::replace(&mut row[j + 1], here);
        }
    }
    row.last().is_some_and(|distance| *distance <= 2)
}
