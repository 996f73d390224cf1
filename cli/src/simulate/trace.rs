//! A recorded load: `seconds,arrivals[,service_seconds]`, parsed once.

use std::ops::RangeInclusive;

use thiserror::Error;

/// Seconds that a handler call may take.
pub const SERVICE_SECONDS: RangeInclusive<f64> = 0.001..=86_400.0;
/// Longest trace, in seconds: a year.
const LONGEST: f64 = 366.0 * 86_400.0;
/// Most messages in all: what fits in memory with room to spare.
const MOST_ARRIVALS: u64 = 50_000_000;

/// What is wrong with a trace.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TraceError {
    /// There is nothing in it.
    #[error("the trace has no interval: write lines of \"seconds,arrivals\", such as \"0,12\"")]
    Empty,
    /// A line is not what it should be.
    #[error("line {line} of the trace: {problem}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong, and what to write.
        problem: String,
    },
    /// More messages than can be simulated.
    #[error("the trace has more than {MOST_ARRIVALS} arrivals: simulate a shorter part of it")]
    TooLarge,
}

/// One interval: its arrivals come evenly spread over it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Seconds since the trace began.
    pub start: f64,
    /// Where the next one starts.
    pub end: f64,
    /// Messages that arrive.
    pub arrivals: u64,
    /// Seconds of a handler call that begins in it, where the trace says so.
    pub service: Option<f64>,
}

impl Interval {
    /// Seconds of a handler call that begins in it; `otherwise` where the trace does not say.
    pub fn service_or(&self, otherwise: f64) -> f64 {
        self.service.unwrap_or(otherwise)
    }
}

/// Intervals that follow each other without a gap; at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace(Vec<Interval>);

impl Trace {
    /// Parses CSV, its cells quoted or not. A header line, blank lines and lines that start with `#` are passed over. The last
    /// interval is as long as the one before it, or a second.
    ///
    /// # Errors
    /// The first line that is not a number of seconds, larger than the one before, and a count of messages.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let mut rows: Vec<Row> = Vec::new();
        let mut total = 0_u64;
        for (index, line) in text.lines().enumerate() {
            let line = line.trim().trim_start_matches('\u{feff}');
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let cells: Vec<&str> = line.split(',').map(|cell| unquoted(cell.trim())).collect();
            if rows.is_empty() && is_header(&cells) {
                continue;
            }
            if cells.iter().any(|cell| cell.contains('"')) {
                let problem = "write numbers without a comma in them, such as \"0,1500\"".to_owned();
                return Err(TraceError::Line { line: index + 1, problem });
            }
            let row = Row::parse(&cells).map_err(|problem| TraceError::Line { line: index + 1, problem })?;
            if rows.last().is_some_and(|last| last.start >= row.start) {
                let problem = "seconds must rise from line to line".to_owned();
                return Err(TraceError::Line { line: index + 1, problem });
            }
            total = total.saturating_add(row.arrivals);
            if total > MOST_ARRIVALS {
                return Err(TraceError::TooLarge);
            }
            rows.push(row);
        }
        Self::from_rows(&rows)
    }

    fn from_rows(rows: &[Row]) -> Result<Self, TraceError> {
        let last_length = match rows {
            [.., before, last] => last.start - before.start,
            [_] => 1.0,
            [] => return Err(TraceError::Empty),
        };
        let ends = rows.iter().skip(1).map(|row| row.start);
        let last_end = rows.last().map(|row| row.start + last_length);
        let intervals = rows.iter().zip(ends.chain(last_end)).map(|(row, end)| Interval {
            start: row.start,
            end,
            arrivals: row.arrivals,
            service: row.service,
        });
        Ok(Self(intervals.collect()))
    }

    /// The intervals, in order.
    pub fn intervals(&self) -> &[Interval] {
        &self.0
    }

    /// Where the last interval ends.
    pub fn end(&self) -> f64 {
        self.0.last().map_or(0.0, |interval| interval.end)
    }

    /// Messages in all.
    pub fn arrivals(&self) -> u64 {
        self.0.iter().map(|interval| interval.arrivals).sum()
    }

    /// Seconds of a handler call on average over the messages; `otherwise` where the trace does not say.
    pub fn mean_service(&self, otherwise: f64) -> f64 {
        let seconds = |interval: &Interval| interval.service_or(otherwise) * interval.arrivals as f64;
        match self.arrivals() {
            0 => otherwise,
            arrivals => self.0.iter().map(seconds).sum::<f64>() / arrivals as f64,
        }
    }

    /// Seconds of the longest handler call; `otherwise` where the trace does not say.
    pub fn longest_service(&self, otherwise: f64) -> f64 {
        self.0.iter().map(|interval| interval.service_or(otherwise)).fold(0.0, f64::max)
    }

    /// When each message arrives, in order.
    pub fn times(&self) -> impl Iterator<Item = f64> + '_ {
        self.0.iter().flat_map(|interval| {
            let spacing = (interval.end - interval.start) / interval.arrivals.max(1) as f64;
            (0..interval.arrivals).map(move |n| interval.start + spacing * n as f64)
        })
    }
}

/// What a cell holds. One that has a quote at one end only is a part of one with a comma, which is no number: it keeps the quote.
fn unquoted(cell: &str) -> &str {
    cell.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(cell).trim()
}

/// Whether the cells name columns, of which the first may have no name.
fn is_header(cells: &[&str]) -> bool {
    let named = |cell: &&str| is_name(cell.trim_start_matches(['"', '_']));
    let number = |cell: &str| cell.parse::<f64>().is_ok();
    // Among nothing but numbers a word is a slip, and what arrived then must not go unseen.
    let is_row = cells.len() > 1 && cells.iter().skip(1).all(|cell| number(cell));
    let numbers = cells.iter().any(|cell| cell.contains('"') || number(cell));
    cells.first().is_some_and(named) && !is_row || !numbers && cells.iter().any(named)
}

/// Whether a cell is a column's name. "NaN" and "inf" are numbers, if useless ones.
fn is_name(cell: &str) -> bool {
    cell.starts_with(|c: char| c.is_ascii_alphabetic()) && cell.parse::<f64>().is_err()
}

struct Row {
    start: f64,
    arrivals: u64,
    service: Option<f64>,
}

impl Row {
    fn parse(cells: &[&str]) -> Result<Self, String> {
        let (start, arrivals, service) = match *cells {
            [start, arrivals] => (start, arrivals, None),
            [start, arrivals, service] => (start, arrivals, Some(service).filter(|text| !text.is_empty())),
            _ => return Err("write \"seconds,arrivals\", such as \"30,12\"".to_owned()),
        };
        let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite());
        let start = number(start)
            .filter(|start| (0.0..=LONGEST).contains(start))
            .ok_or_else(|| {
                format!("\"{start}\" is no number of seconds between 0 and {LONGEST}: of times since 1970, subtract the first")
            })?;
        let whole = number(arrivals).filter(|n| (0.0..=MOST_ARRIVALS as f64).contains(n) && n.fract() == 0.0);
        let arrivals = whole
            .ok_or_else(|| format!("\"{arrivals}\" is no count of messages between 0 and {MOST_ARRIVALS}"))?;
        let service = service
            .map(|text| {
                number(text).filter(|seconds| SERVICE_SECONDS.contains(seconds)).ok_or_else(|| {
                    format!("\"{text}\" is no number of seconds of a handler call, between 0.001 and 86400")
                })
            })
            .transpose()?;
        // Checked: whole and not negative.
        Ok(Self { start, arrivals: arrivals as u64, service })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Trace::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn arrivals_are_spread_over_the_interval_that_starts_there() {
        let trace = Trace::parse("seconds,arrivals\n0,2\n10,0\n# a comment\n\n20,4\n").unwrap();
        assert_eq!(trace.times().collect::<Vec<_>>(), [0.0, 5.0, 20.0, 22.5, 25.0, 27.5]);
        assert_eq!((trace.end(), trace.arrivals()), (30.0, 6));
    }

    #[test]
    fn a_third_column_is_the_handlers_speed() {
        let trace = Trace::parse("0,1,0.5\n1,1,\n2,1").unwrap();
        let service: Vec<_> = trace.intervals().iter().map(|i| i.service).collect();
        assert_eq!(service, [Some(0.5), None, None]);
    }

    #[test]
    fn what_real_tools_write_is_read() {
        let plain = Trace::parse("0,2\n10,3").unwrap();
        assert_eq!(
            Trace::parse("\u{feff}\"Time\",\"Value\"\r\n\"0\",\"2\"\r\n\"10\",\"3\"\r\n").unwrap(),
            plain
        );
        assert_eq!(Trace::parse("\"time, s\",arrivals\n0,2\n10,3").unwrap(), plain);
        assert!(refused("O,12\n1,5\n").contains("line 1"));
        for header in [",arrivals", "_time,_value", "\"\",\"arrivals\""] {
            assert_eq!(
                Trace::parse(&format!("{header}\n0,5\n")).map(|trace| trace.arrivals()).ok(),
                Some(5),
                "{header}"
            );
        }
    }

    #[test]
    fn the_mean_of_the_calls_is_over_messages_and_the_longest_over_intervals() {
        let trace = Trace::parse("0,1\n10,3,2\n20,0,8").unwrap();
        assert_eq!((trace.mean_service(6.0), trace.longest_service(6.0)), (3.0, 8.0));
        assert_eq!(Trace::parse("0,0,2").unwrap().mean_service(6.0), 6.0);
    }

    #[test]
    fn nonsense_is_refused_with_its_line_and_what_to_write() {
        assert!(refused("").contains("no interval"));
        assert!(refused("0,1\n0,1").contains("line 2 of the trace: seconds must rise"));
        assert!(refused("0,-1").contains("\"-1\" is no count"));
        assert!(refused("0,1.5").contains("no count"));
        assert!(refused("0,\"1,500\"").contains("line 1 of the trace: write numbers without a comma"));
        assert!(refused("0,NaN").contains("no count"));
        assert!(refused("-1,1").contains("no number of seconds"));
        assert!(refused("0").contains("seconds,arrivals"));
        assert!(
            refused("NaN,5").contains("no number of seconds") && refused("inf,5\n0,1").contains("line 1")
        );
        assert!(refused("1764240000,5").contains("subtract the first"));
        assert!(refused("0,1,0").contains("between 0.001 and 86400"));
        assert!(refused("0,1,1e300").contains("between 0.001 and 86400"));
        assert!(refused("0,50000001").contains("no count"));
        assert!(refused("0,30000000\n1,30000000").contains("shorter"));
        assert!(refused("seconds,arrivals\n1,1\nseconds,arrivals").contains("line 3"));
    }
}
