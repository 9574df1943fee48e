//! The loss plot as a self-contained page: inline SVG, no script, no external files.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::{LogEntry, curve, label, range, smoothed, ticks};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 46.0;

const STYLE: &str = "body{font:15px system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222;background:#fff}\
svg{width:100%;height:auto}text{font-size:12px;fill:#444}.grid{stroke:#e3e3e3}.raw{stroke:#aac8eb}\
.line{stroke:#1e5ab4;stroke-width:2}\
.eval{stroke:#dc6e14;stroke-width:2}.score{stroke:#1e5ab4;stroke-width:2}.s1{stroke:#dc6e14}.s2{stroke:#2a8c4a}\
.s3{stroke:#a03c9b}.s4{stroke:#8a6d1f}.s5{stroke:#0f8a92}polyline{fill:none}td{padding:0 1.5em 0 0;text-align:right}\
h2{font-size:1em;margin:1.5em 0 .2em}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}text{fill:#bbb}.grid{stroke:#333}.raw{stroke:#34506f}.line{stroke:#6ea4ee}}";

/// The page.
pub(super) fn html(entries: &[LogEntry], title: &str) -> String {
    let mut page = String::new();
    let title = escaped(title);
    let _ = write!(
        page,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">"
    );
    let _ = write!(page, "<title>{title}</title><style>{STYLE}</style><h1 dir=\"auto\">{title}</h1>");
    let loss = curve(entries, |e| e.loss);
    let evaluation = curve(entries, |e| e.eval_loss);
    let last = |points: &[(f64, f64)]| points.last().map_or("–".to_owned(), |p| format!("{:.4}", p.1));
    let best = evaluation.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let steps = entries.iter().map(|e| e.step + 1).max().unwrap_or(0);
    let _ = write!(
        page,
        "<table><tr><td>steps<td>{steps}<tr><td>last training loss<td>{}<tr><td>last evaluation loss<td>{}",
        last(&loss),
        last(&evaluation)
    );
    if best.is_finite() {
        let _ = write!(page, "<tr><td>best evaluation loss<td>{best:.4}");
    }
    let scores = scores(entries);
    for (name, points) in &scores {
        let _ = write!(page, "<tr><td>last score of {}<td>{}", escaped(name), last(points));
    }
    page.push_str("</table>");
    let smooth = smoothed(&loss);
    let curves = [("raw", "each step", &loss), ("line", "smoothed", &smooth), ("eval", "evaluation", &evaluation)];
    chart(&mut page, "Loss", "loss per trained token (nats)", &curves);
    if !scores.is_empty() {
        let names: Vec<(String, String)> = scores
            .iter()
            .enumerate()
            .map(|(at, (name, _))| (format!("score s{}", at % SCORE_COLOURS), escaped(name)))
            .collect();
        let curves: Vec<(&str, &str, &Points)> = names
            .iter()
            .zip(&scores)
            .map(|((class, name), (_, points))| (class.as_str(), name.as_str(), points))
            .collect();
        chart(&mut page, "Benchmarks", "score", &curves);
    }
    let curves: [(&str, &str, fn(&LogEntry) -> Option<f64>); 6] = [
        ("Learning rate", "learning rate", |e| e.learning_rate),
        ("Gradient norm before clipping", "L2 norm", |e| e.grad_norm),
        ("Speed over the last steps", "tokens per second", |e| e.tokens_per_second),
        ("Time of a step", "seconds", |e| e.step_seconds),
        ("Reward margin", "reward margin", |e| e.reward_margin),
        ("Reward accuracy", "fraction of pairs", |e| e.reward_accuracy),
    ];
    for (name, unit, value) in curves {
        let points = curve(entries, value);
        if !points.is_empty() {
            chart(&mut page, name, unit, &[("line", "", &points)]);
        }
    }
    page.push_str("</html>\n");
    page
}

/// Number of colours of the curves of scores.
const SCORE_COLOURS: usize = 6;

/// The curve of each benchmark.
fn scores(entries: &[LogEntry]) -> Vec<(String, Points)> {
    let names: BTreeSet<&String> = entries.iter().flat_map(|entry| entry.scores.keys()).collect();
    names.into_iter().map(|name| (name.clone(), curve(entries, |entry| entry.scores.get(name).copied()))).collect()
}

/// Points of one curve: (step, value).
type Points = Vec<(f64, f64)>;

/// Adds a plot over steps. `curves` are (class, name in the legend, points); a plot of one curve has no legend.
fn chart(page: &mut String, name: &str, unit: &str, curves: &[(&str, &str, &Points)]) {
    let all: Vec<&[(f64, f64)]> = curves.iter().map(|(_, _, points)| points.as_slice()).collect();
    let ((x_low, x_high), (y_low, y_high)) = (range(&all, |p| p.0), range(&all, |p| p.1));
    let to_x = |x: f64| LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - 10.0);
    let to_y = |y: f64| HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - BOTTOM - 10.0);
    let _ = write!(page, "<h2>{name}</h2><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{name}\">");
    for y in ticks(y_low, y_high, 5) {
        let at = to_y(y);
        let _ = write!(page, "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{:.1}\"/>", WIDTH - 10.0);
        let _ =
            write!(page, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", LEFT - 8.0, at + 4.0, label(y));
    }
    for x in ticks(x_low, x_high, 8) {
        let _ = write!(
            page,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            to_x(x),
            HEIGHT - BOTTOM + 18.0,
            label(x)
        );
    }
    let (middle, across) = ((LEFT + WIDTH - 10.0) / 2.0, (HEIGHT - BOTTOM) / 2.0);
    let _ = write!(page, "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">step</text>", HEIGHT - 6.0);
    let turned = format!("transform=\"rotate(-90 12 {across})\"");
    let _ = write!(page, "<text x=\"12\" y=\"{across}\" {turned} text-anchor=\"middle\">{unit}</text>");
    let longest = curves.iter().map(|(_, name, _)| name.chars().count()).max().unwrap_or(0);
    let width = (34.0 + 7.5 * longest as f64).max(120.0);
    let named = curves.iter().filter(|(_, name, points)| !name.is_empty() && !points.is_empty());
    for (row, (class, name, _)) in named.enumerate() {
        let (x, y) = (WIDTH - width, 22.0 + 18.0 * row as f64);
        let _ = write!(page, "<path class=\"{class}\" d=\"M{x} {:.1}h24\"/>", y - 4.0);
        let _ = write!(page, "<text x=\"{}\" y=\"{y}\">{name}</text>", x + 30.0);
    }
    for (class, _, points) in curves.iter().filter(|(_, _, points)| points.len() > 1) {
        let _ = write!(page, "<polyline class=\"{class}\" points=\"");
        for (x, y) in thinned(points) {
            let _ = write!(page, "{:.1},{:.1} ", to_x(x), to_y(y));
        }
        page.push_str("\"/>");
    }
    page.push_str("</svg>");
}

/// At most 4000 points: the lowest and the highest of each range, so that peaks remain visible.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= 4000 {
        return points.to_vec();
    }
    let mut out = vec![];
    for stretch in points.chunks(points.len().div_ceil(2000)) {
        let low = stretch.iter().min_by(|a, b| a.1.total_cmp(&b.1));
        let high = stretch.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        let mut pair: Vec<_> = low.into_iter().chain(high).copied().collect();
        pair.sort_by(|a, b| a.0.total_cmp(&b.0));
        pair.dedup();
        out.extend(pair);
    }
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
