//! `HEDGE_…` variables of the environment, each one value of the file.

/// One `HEDGE_…` variable. `HEDGE_CONFIG` is the program's own and not a value of the file; `HEDGE_CLOUD_…` are those of
/// `hedge-cloud`, which an operator's shell may have on the same machine.
pub(super) struct Override {
    pub(super) variable: String,
    path: Vec<String>,
    value: toml::Value,
}

impl Override {
    pub(super) fn new(variable: &str, value: &str) -> Option<Self> {
        let ours = |rest: &&str| *rest != "CONFIG" && !rest.starts_with("CLOUD_");
        let path = variable.strip_prefix("HEDGE_").filter(ours)?;
        // A value that reads as TOML is taken as such; anything else is a text.
        let value = toml::from_str::<toml::Table>(&format!("value = {value}"))
            .ok()
            .and_then(|mut table| table.remove("value"))
            .unwrap_or_else(|| toml::Value::String(value.to_owned()));
        let path = path.split("__").map(str::to_lowercase).collect();
        Some(Self { variable: variable.to_owned(), path, value })
    }

    pub(super) fn apply(&self, table: &mut toml::Table) {
        let Some((last, parents)) = self.path.split_last() else { return };
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
