//! Markdown tables.

/// A table with a left-aligned first column.
pub(crate) fn markdown(columns: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(columns);
    text.push_str("|---|");
    text.push_str(&"---:|".repeat(columns.len().saturating_sub(1)));
    text.push('\n');
    text.extend(rows.iter().map(|row| line(row)));
    text
}

/// The middle of the values; None of none.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    Some(*values.get(values.len() / 2)?)
}

/// Three significant digits, `–` for what was not measured.
pub(crate) fn figure(value: Option<f64>) -> String {
    match value {
        None => "–".into(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

pub(crate) fn ratio(value: Option<f64>, to: Option<f64>) -> String {
    value.zip(to).map_or("–".into(), |(value, to)| format!("{:.2}", value / to))
}
