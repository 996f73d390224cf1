//! What the operator's `/metrics` says. Pure.

use warren_operator::scaler::sample::name_and_value;

/// Everything that one `/metrics` says, in the Prometheus text format.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exposition(String);

impl Exposition {
    /// Keeps the text; a line that is no series is passed over when it is read.
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// Sum of a metric over the series that have all of `labels`; none where there is no such series. The labels' values are
    /// names of objects, which need no escaping.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|(label, value)| format!("{label}=\"{value}\""));
        let labels: Vec<[String; 2]> =
            labels.map(|label| [format!("{{{label}"), format!(",{label}")]).collect();
        let has_all = |line: &str| labels.iter().all(|label| label.iter().any(|label| line.contains(label)));
        let lines = self.0.lines().filter(|line| line.starts_with(name));
        let found = lines.filter_map(|line| Some((line, name_and_value(line)?)));
        let values =
            found.filter(|(line, (found, _))| *found == name && has_all(line)).map(|(_, (_, value))| value);
        // An empty sum is none, and not zero.
        values.reduce(|sum, value| sum + value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_their_labels() {
        let text = "# HELP x\nx{a=\"1\",b=\"q\"} 2\nx{a=\"1\",b=\"r\"} 3\nx{a=\"2\",aa=\"3\"} 5 170000\nxx 9\ny 7\nz NaN\nbroken{a=\"\n";
        let metrics = Exposition::new(text.to_owned());
        assert_eq!(metrics.sum("x", &[("a", "1")]), Some(5.0));
        assert_eq!(metrics.sum("x", &[("b", "q"), ("a", "1")]), Some(2.0));
        assert_eq!(metrics.sum("x", &[]), Some(10.0));
        assert_eq!(
            (metrics.sum("y", &[]), metrics.sum("z", &[]), metrics.sum("x", &[("a", "3")])),
            (Some(7.0), None, None)
        );
    }
}
