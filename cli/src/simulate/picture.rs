//! Plots of two runs: for a terminal, as SVG, and as a page of its own. Pure.

use std::fmt::Write as _;

use super::Comparison;
use super::setting::Setting;
use super::trace::Trace;
use super::world::{Point, Run};

/// Points of a plot: a curve is thinned to its largest value in each of so many spans.
const COLUMNS: usize = 320;
const TERMINAL_WIDTH: usize = 96;
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

/// The pods over time, both runs on one scale, one under the other.
pub fn terminal(comparison: &Comparison) -> String {
    let until = end(comparison);
    let (warren, keda) = (&comparison.warren.0, &comparison.keda_hpa.0);
    let most = warren.peak_replicas.max(keda.peak_replicas).max(1);
    let mut text = String::new();
    for (name, run) in [("Warren", warren), ("KEDA + HPA", keda)] {
        let mut columns = [0_u32; TERMINAL_WIDTH];
        for point in &run.points {
            let column = (point.at / until * TERMINAL_WIDTH as f64) as usize;
            if let Some(most) = columns.get_mut(column) {
                *most = point.pods.max(*most);
            }
        }
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "{name}: pods");
        for row in (0..TERMINAL_HEIGHT).rev() {
            let cells = columns.map(|pods| {
                let eighths = (u64::from(pods) * 8 * TERMINAL_HEIGHT as u64).div_ceil(u64::from(most));
                EIGHTHS[usize::try_from(eighths).unwrap_or(usize::MAX).saturating_sub(row * 8).min(8)]
            });
            let label = if row + 1 == TERMINAL_HEIGHT { most.to_string() } else { String::new() };
            let _ = writeln!(text, "{}", format!("{label:>5} {}", String::from_iter(cells)).trim_end());
        }
        let _ = writeln!(
            text,
            "    0 {:─<TERMINAL_WIDTH$}\n{:>right$}\n",
            "",
            duration(until),
            right = TERMINAL_WIDTH + 6
        );
    }
    text
}

/// Three panels over one another: the load, what waits, the pods.
pub fn svg(title: &str, trace: &Trace, comparison: &Comparison, font: &str) -> String {
    let until = end(comparison);
    let (warren, keda) = (&comparison.warren.0, &comparison.keda_hpa.0);
    let waiting = |run| thinned(run, until, |point: &Point| point.waiting as f64);
    let pods = |run| thinned(run, until, |point: &Point| f64::from(point.pods));
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
    let most =
        curves.iter().flat_map(|(_, curve)| curve).map(|(_, value)| *value).fold(0.0, f64::max).max(1.0);
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
    let both = comparison.figures();
    let rows: String = super::rows(&both.warren)
        .into_iter()
        .zip(super::rows(&both.keda_hpa))
        .map(|((what, ours), (_, theirs))| {
            format!("<tr><th>{what}</th><td>{ours}</td><td>{theirs}</td></tr>\n")
        })
        .collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>Worker {name} under a recorded load</title>\n<style>body{{font:15px system-ui,sans-serif;max-width:900px;margin:2em auto}}table{{border-collapse:collapse}}th{{text-align:left}}td,th{{padding:.2em 1.5em .2em 0}}td{{text-align:right}}</style>\n<h1>Worker {name}</h1>\n<p>{} messages in {}, {} s of work each unless the trace says otherwise, {} s for a pod to start.</p>\n{plot}<table>\n<tr><th></th><td>Warren</td><td>KEDA + HPA</td></tr>\n{rows}</table>\n</html>\n",
        trace.arrivals(),
        duration(trace.end()),
        setting.pods.service_seconds,
        setting.pods.startup_seconds,
    )
}

fn end(comparison: &Comparison) -> f64 {
    comparison.warren.0.ended_at.max(comparison.keda_hpa.0.ended_at).max(1.0)
}

/// The largest value in each of [`COLUMNS`] spans; nothing after the run's end.
fn thinned(run: &Run, until: f64, value: impl Fn(&Point) -> f64) -> Curve {
    let span = until / COLUMNS as f64;
    let mut curve = Curve::new();
    for point in &run.points {
        let at = (point.at / span).floor() * span;
        match curve.last_mut() {
            Some((last, most)) if *last == at => *most = most.max(value(point)),
            _ => curve.push((at, value(point))),
        }
    }
    curve
}

fn load(trace: &Trace) -> Curve {
    let rate = |arrivals: u64, seconds: f64| arrivals as f64 / seconds;
    let span = trace.end() / COLUMNS as f64;
    let mut curve = Curve::new();
    for interval in trace.intervals() {
        let at = (interval.start / span).floor() * span;
        let now = rate(interval.arrivals, interval.end - interval.start);
        match curve.last_mut() {
            Some((last, most)) if *last == at => *most = most.max(now),
            _ => curve.push((at, now)),
        }
    }
    curve.push((trace.end(), 0.0));
    curve
}

fn duration(seconds: f64) -> String {
    let minutes = (seconds / 60.0).round();
    if minutes >= 120.0 { format!("{:.1} h", minutes / 60.0) } else { format!("{minutes:.0} min") }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared() -> (Setting, Trace, Comparison) {
        let manifest = "kind: Worker\napiVersion: warren.dev/v1alpha1\nmetadata: {name: a<b}\nspec: {queueRef: {name: q}, template: {}}";
        let setting = Setting::parse(manifest, None, 0.5, 5.0).unwrap();
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
        let text = terminal(&compared().2);
        assert!(
            text.contains("Warren: pods") && text.contains("KEDA + HPA: pods") && text.contains('█'),
            "{text}"
        );
    }
}
