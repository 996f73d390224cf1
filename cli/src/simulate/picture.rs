//! Plots of two runs: for a terminal, as SVG, and as a page of its own. Pure.

use std::fmt::Write as _;

use super::Comparison;
use super::setting::Setting;
use super::trace::Trace;
use super::world::{Point, Run};

/// Points of a curve of an SVG.
const COLUMNS: usize = 320;
/// Cells of a terminal that are left of a plot.
const TERMINAL_LEFT: usize = 6;
const LEAST_TERMINAL_WIDTH: usize = 24;
const MOST_TERMINAL_WIDTH: usize = 96;
const TERMINAL_HEIGHT: usize = 8;
/// Eighths of a character cell, from empty to full.
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const WIDTH: f64 = 860.0;
const PANEL: f64 = 120.0;
const LEFT: f64 = 62.0;
const TOP: f64 = 34.0;
const GAP: f64 = 36.0;
const WARREN: &str = "#c2410c";
const KEDA: &str = "#2563eb";
const LOAD: &str = "#64748b";

/// Seconds and values.
type Curve = Vec<(f64, f64)>;

/// The pods over time, both runs on one scale, one under the other, in a terminal of so many columns.
pub fn terminal(comparison: &Comparison, columns: usize) -> String {
    let width = columns.saturating_sub(TERMINAL_LEFT).clamp(LEAST_TERMINAL_WIDTH, MOST_TERMINAL_WIDTH);
    let until = end(comparison);
    let pods = |run| thinned(run, until, width, |point| point.pods as f64);
    let curves = [("Warren", pods(&comparison.warren.0)), ("KEDA + HPA", pods(&comparison.keda_hpa.0))];
    let most = most(curves.iter().map(|(_, curve)| curve));
    let mut text = String::new();
    for (name, curve) in &curves {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "{name}: pods");
        for row in (0..TERMINAL_HEIGHT).rev() {
            let cells = curve.iter().map(|(_, pods)| {
                let eighths = (pods * 8.0 * TERMINAL_HEIGHT as f64 / most).ceil() as usize;
                EIGHTHS[eighths.saturating_sub(row * 8).min(8)]
            });
            let label = if row + 1 == TERMINAL_HEIGHT { most.to_string() } else { String::new() };
            let _ = writeln!(text, "{}", format!("{label:>5} {}", cells.collect::<String>()).trim_end());
        }
        let _ = writeln!(
            text,
            "    0 {:─<width$}\n{:>right$}\n",
            "",
            duration(until),
            right = TERMINAL_LEFT + width
        );
    }
    text
}

/// Three panels over one another: the load, what waits, the pods.
pub fn svg(title: &str, trace: &Trace, comparison: &Comparison, font: &str) -> String {
    let until = end(comparison);
    let (warren, keda) = (&comparison.warren.0, &comparison.keda_hpa.0);
    let waiting = |run| thinned(run, until, COLUMNS, |point| point.waiting as f64);
    let pods = |run| thinned(run, until, COLUMNS, |point| point.pods as f64);
    let panels = [
        ("messages arriving a second", vec![(LOAD, load(trace))]),
        ("messages waiting", vec![(KEDA, waiting(keda)), (WARREN, waiting(warren))]),
        ("pods", vec![(KEDA, pods(keda)), (WARREN, pods(warren))]),
    ];
    let height = TOP + (PANEL + GAP) * panels.len() as f64;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"{font}\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n<text x=\"{LEFT}\" y=\"18\" font-weight=\"bold\">{}</text>\n<text x=\"{}\" y=\"18\" text-anchor=\"end\"><tspan fill=\"{WARREN}\">Warren</tspan> <tspan fill=\"{KEDA}\">KEDA + HPA</tspan></text>\n",
        escaped(title),
        WIDTH - 10.0
    );
    for (index, (name, curves)) in panels.iter().enumerate() {
        panel(&mut text, TOP + (PANEL + GAP) * index as f64, name, curves, until);
    }
    text.push_str("</svg>\n");
    text
}

fn panel(text: &mut String, top: f64, name: &str, curves: &[(&str, Curve)], until: f64) {
    let most = most(curves.iter().map(|(_, curve)| curve));
    let (bottom, right) = (top + PANEL, WIDTH - 10.0);
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "<text x=\"{LEFT}\" y=\"{:.0}\" fill=\"#475569\">{name}</text>\n<path d=\"M{LEFT} {bottom:.0}H{right:.0}M{LEFT} {top:.0}H{right:.0}\" stroke=\"#e2e8f0\"/>\n<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\" fill=\"#475569\">{most:.0}</text>\n<text x=\"{:.0}\" y=\"{bottom:.0}\" text-anchor=\"end\" fill=\"#475569\">0</text>\n<text x=\"{right:.0}\" y=\"{:.0}\" text-anchor=\"end\" fill=\"#475569\">{}</text>",
        top - 4.0,
        LEFT - 6.0,
        top + 9.0,
        LEFT - 6.0,
        bottom + 14.0,
        duration(until),
    );
    for (colour, curve) in curves {
        let mut path = String::new();
        let mut last = None;
        for (at, value) in curve {
            let x = LEFT + at / until * (right - LEFT);
            let y = bottom - value / most * PANEL;
            // A step at a time, and a point only where something changes.
            let rounded = (y * 10.0).round();
            match last {
                None => drop(write!(path, "M{x:.1} {y:.1}")),
                Some(before) if before == rounded => {}
                Some(_) => drop(write!(path, "H{x:.1}V{y:.1}")),
            }
            last = Some(rounded);
        }
        let _ = writeln!(
            text,
            "<path d=\"{path}H{right:.1}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.4\"/>"
        );
    }
}

/// A page that needs nothing else.
pub fn page(setting: &Setting, trace: &Trace, comparison: &Comparison) -> String {
    let name = escaped(&setting.name);
    let plot = svg(&format!("Worker {}", setting.name), trace, comparison, "system-ui, sans-serif");
    let rows: String = comparison
        .rows()
        .iter()
        .map(|[what, ours, theirs]| format!("<tr><th>{what}</th><td>{ours}</td><td>{theirs}</td></tr>\n"))
        .collect();
    let caveats = super::caveats(setting, trace);
    let caveats: String = caveats.iter().map(|text| format!("<p>{}</p>\n", escaped(text))).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>Worker {name} under a recorded load</title>\n<style>body{{font:15px system-ui,sans-serif;max-width:900px;margin:2em auto}}table{{border-collapse:collapse}}th{{text-align:left}}td,th{{padding:.2em 1.5em .2em 0}}td{{text-align:right}}</style>\n<h1>Worker {name}</h1>\n<p>{} messages in {}, {} s of work each unless the trace says otherwise, {} s for a pod to start.</p>\n{caveats}{plot}<table>\n<tr><th></th><td>Warren</td><td>KEDA + HPA</td></tr>\n{rows}</table>\n</html>\n",
        trace.arrivals(),
        duration(trace.end()),
        setting.pods.service_seconds,
        setting.pods.startup_seconds,
    )
}

/// The height of a plot: the largest value of its curves, 1 at least.
fn most<'a>(curves: impl Iterator<Item = &'a Curve>) -> f64 {
    curves.flatten().map(|(_, value)| *value).fold(1.0, f64::max)
}

fn end(comparison: &Comparison) -> f64 {
    comparison.warren.0.ended_at.max(comparison.keda_hpa.0.ended_at).max(1.0)
}

/// The largest value in each of so many spans; the last one before, where a span has none or the run has ended.
fn thinned(run: &Run, until: f64, columns: usize, value: impl Fn(&Point) -> f64) -> Curve {
    let span = until / columns as f64;
    let of = |column| {
        let (from, to) = (column as f64 * span, (column + 1) as f64 * span);
        let (begun, _) = run.points.split_at(run.points.partition_point(|point| point.at < to));
        let within = begun.iter().rev().take_while(|point| point.at >= from).map(&value).reduce(f64::max);
        (from, within.or_else(|| begun.last().map(&value)).unwrap_or_default())
    };
    (0..columns).map(of).collect()
}

fn load(trace: &Trace) -> Curve {
    let rate = |arrivals: u64, seconds: f64| arrivals as f64 / seconds;
    let span = trace.end() / COLUMNS as f64;
    let mut curve = Curve::new();
    for interval in trace.intervals() {
        let column = (interval.start / span).floor();
        let (at, next) = (column * span, (column + 1.0) * span);
        let now = rate(interval.arrivals, interval.end - interval.start);
        match curve.last_mut() {
            Some((last, most)) if *last == at => {
                *most = most.max(now);
                // What goes on has a column of its own.
                if interval.end > next {
                    curve.push((next, now));
                }
            }
            _ => curve.push((at, now)),
        }
    }
    curve.push((trace.end(), 0.0));
    curve
}

fn duration(seconds: f64) -> String {
    match seconds {
        ..120.0 => format!("{seconds:.0} s"),
        ..7170.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::manifest::Wanted;

    #[test]
    fn a_short_spike_is_not_drawn_over_the_quiet_hours_after_it() {
        let trace = Trace::parse("0,36000\n36000,5000\n36060,0\n50000,36400\n86400,0").unwrap();
        let drawn = load(&trace);
        let at_40_000 = drawn.iter().rev().find(|(at, _)| *at <= 40_000.0);
        assert!(at_40_000.is_some_and(|(_, rate)| *rate == 0.0), "{drawn:?}");
        let most = drawn.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
        assert!((most - 5000.0 / 60.0).abs() < 1e-9, "{drawn:?}");
    }

    fn compared() -> (Setting, Trace, Comparison) {
        let manifest = "kind: Worker\napiVersion: warren.dev/v1alpha1\nmetadata: {name: a<b}\nspec: {queueRef: {name: q}, template: {}}";
        let setting = Setting::parse(manifest, Wanted::default(), 0.5, 5.0).unwrap();
        let trace = Trace::parse("0,0\n30,200\n40,0\n60,0").unwrap();
        let comparison = Comparison::of(&setting, &trace);
        (setting, trace, comparison)
    }

    #[test]
    fn a_page_needs_nothing_from_elsewhere_and_escapes_names() {
        let (setting, trace, comparison) = compared();
        let page = page(&setting, &trace, &comparison);
        assert!(page.contains("<svg") && page.contains("a&lt;b") && !page.contains("a<b"));
        for elsewhere in ["<script", "src=", "href=", "@import", "url("] {
            assert!(!page.contains(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn a_terminal_gets_both_runs() {
        let text = terminal(&compared().2, 102);
        assert!(
            text.contains("Warren: pods") && text.contains("KEDA + HPA: pods") && text.contains('█'),
            "{text}"
        );
    }

    #[test]
    fn a_terminal_shows_pods_that_end_beyond_those_that_are_asked_for() {
        let (_, _, mut comparison) = compared();
        comparison.warren.0.peak_replicas = 10;
        comparison.warren.0.points =
            vec![Point { at: 0.0, waiting: 0, pods: 20 }, Point { at: 30.0, waiting: 0, pods: 10 }];
        let text = terminal(&comparison, 102);
        let height = |column: usize| {
            let rows = text.lines().skip(1).take(TERMINAL_HEIGHT);
            rows.filter(|line| line.chars().nth(TERMINAL_LEFT + column) == Some('█')).count()
        };
        assert!(text.contains("   20 █"), "{text}");
        assert_eq!((height(0), height(95)), (8, 4), "{text}");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for columns in [40, 80, 500] {
            let text = terminal(&compared().2, columns);
            let widest = text.lines().map(|line| line.chars().count()).max();
            assert_eq!(widest, Some(columns.min(102)), "{text}");
        }
    }

    #[test]
    fn pods_stay_in_the_plot_until_another_point_says_otherwise() {
        let point = |at, pods| Point { at, waiting: 0, pods };
        let run = Run { points: vec![point(0.0, 3), point(1.0, 5), point(1.5, 1)], ..Run::default() };
        let pods: Vec<f64> =
            thinned(&run, 4.0, 8, |point| point.pods as f64).iter().map(|(_, pods)| *pods).collect();
        assert_eq!(pods, [3.0, 3.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        let at_once = thinned(&run, 4.0, 2, |point| point.pods as f64);
        assert_eq!(at_once, [(0.0, 5.0), (2.0, 1.0)]);
    }

    #[test]
    fn calls_beyond_the_time_out_are_told_on_the_page() {
        let (mut setting, trace, comparison) = compared();
        assert!(!page(&setting, &trace, &comparison).contains("timeoutSeconds"));
        setting.pods.service_seconds = 31.0;
        assert!(page(&setting, &trace, &comparison).contains("Calls of up to 31 s outlast"));
    }

    #[test]
    fn short_times_are_in_seconds() {
        let told = [20.0, 130.0, 7199.0, 86_400.0].map(duration);
        assert_eq!(told, ["20 s", "2 min", "2.0 h", "24.0 h"]);
    }
}
