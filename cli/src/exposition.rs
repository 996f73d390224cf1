//! The Prometheus text format, as far as Warren's own programs write it. Pure.

use std::collections::BTreeMap;

/// One series with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value, a finite number.
    pub value: f64,
}

/// Everything that one `/metrics` says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exposition(Vec<Series>);

impl Exposition {
    /// Reads the text; a line that is no series is passed over.
    pub fn parse(text: &str) -> Self {
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(series).collect())
    }

    /// Sum of a metric over the series that have all of `labels`; none where there is no such series.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let all = |series: &&Series| {
            labels.iter().all(|(label, value)| series.labels.get(*label).is_some_and(|is| is == value))
        };
        let mut found = self.0.iter().filter(|series| series.name == name).filter(all).peekable();
        found.peek()?;
        // An empty sum of floats would be -0.
        Some(found.map(|series| series.value).fold(0.0, |sum, value| sum + value))
    }
}

fn series(line: &str) -> Option<Series> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => labels(inside)?,
        None => (BTreeMap::new(), rest),
    };
    let value: f64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
    value.is_finite().then(|| Series { name: name.to_owned(), labels, value })
}

/// `a="x",b="y"} rest`, with `\\`, `\"` and `\n` in the values.
fn labels(text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (label, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.insert(label.trim().to_owned(), value);
        rest = &after[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_their_labels() {
        let text = "# HELP x\nx{a=\"1\",b=\"q \\\"z\\\" }\"} 2\nx{a=\"1\",b=\"r\"} 3\nx{a=\"2\"} 5 170000\ny 7\nz NaN\nbroken{a=\"\n";
        let metrics = Exposition::parse(text);
        assert_eq!(metrics.sum("x", &[("a", "1")]), Some(5.0));
        assert_eq!(metrics.sum("x", &[("b", "q \"z\" }")]), Some(2.0));
        assert_eq!(metrics.sum("x", &[]), Some(10.0));
        assert_eq!(
            (metrics.sum("y", &[]), metrics.sum("z", &[]), metrics.sum("x", &[("a", "3")])),
            (Some(7.0), None, None)
        );
    }
}
