//! A report in one HTML file: scores by task, by length of the prompt, and which choices were taken for which.
//!
//! The plots are SVG, drawn here; the file needs no network and no script.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::metric::mean;
use crate::results::{Finished, HEADINGS, table};
use crate::task::Group;

/// Most different choices in a table of confusions; choices that are texts of their own have more.
const MOST_CHOICES: usize = 6;

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A bar for each label, with its standard error.
fn bars(title: &str, entries: &[(String, f64, Option<f64>, usize)]) -> String {
    let (left, width, row) = (300.0, 420.0, 22.0);
    let height = row * entries.len() as f64 + 24.0;
    let mut svg = format!(
        "<h2>{}</h2>\n<svg viewBox=\"0 0 800 {height}\" width=\"800\" height=\"{height}\" role=\"img\">\n",
        escaped(title)
    );
    for quarter in 0..=4 {
        let x = left + width * f64::from(quarter) / 4.0;
        let _ = writeln!(
            svg,
            "<line x1=\"{x}\" x2=\"{x}\" y1=\"0\" y2=\"{}\" class=\"grid\"/><text x=\"{x}\" y=\"{}\" class=\"axis\">{}</text>",
            height - 20.0,
            height - 6.0,
            quarter * 25
        );
    }
    for (number, (label, value, error, items)) in entries.iter().enumerate() {
        let y = row * number as f64;
        let end = left + width * value;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" class=\"label\">{}</text><rect x=\"{left}\" y=\"{}\" width=\"{}\" height=\"{}\"/>",
            left - 8.0,
            y + 15.0,
            escaped(label),
            y + 3.0,
            width * value,
            row - 6.0
        );
        if let Some(error) = error {
            let (low, high) = ((end - width * error).max(left), (end + width * error).min(left + width));
            let middle = y + row / 2.0;
            let _ = writeln!(svg, "<line x1=\"{low}\" x2=\"{high}\" y1=\"{middle}\" y2=\"{middle}\" class=\"error\"/>");
        }
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\">{:.1} (n = {items})</text>",
            left + width + 8.0,
            y + 15.0,
            100.0 * value
        );
    }
    svg + "</svg>\n"
}

/// Scores of four parts of all items with equal numbers, from the shortest prompts to the longest.
fn by_length(finished: &[Finished<'_>]) -> Vec<(String, f64, Option<f64>, usize)> {
    let of = |one: &Finished<'_>| {
        let metric = one.prepared.task.metrics[0];
        let values = one.samples.iter().map(|sample| (sample.prompt_length, metric.percent(sample.values[0]) / 100.0));
        values.collect::<Vec<_>>()
    };
    let mut all: Vec<(usize, f64)> = finished.iter().flat_map(of).collect();
    all.sort_by_key(|(length, _)| *length);
    let part = all.len().div_ceil(4).max(1);
    let entry = |part: &[(usize, f64)]| {
        let score = mean(&part.iter().map(|(_, value)| *value).collect::<Vec<_>>());
        let ends = [part.first(), part.last()].map(|end| end.map_or(0, |(length, _)| *length));
        (format!("{} to {} characters", ends[0], ends[1]), score.value, score.error, score.items)
    };
    all.chunks(part).map(entry).collect()
}

/// How often each choice was picked for each right one, for tasks whose items have the same few choices.
fn confusions(finished: &[Finished<'_>]) -> BTreeMap<Vec<String>, BTreeMap<(usize, usize), usize>> {
    let mut found: BTreeMap<Vec<String>, BTreeMap<(usize, usize), usize>> = BTreeMap::new();
    for sample in finished.iter().flat_map(|one| &one.samples) {
        if let (Some(gold), Some(pick)) = (sample.gold, sample.pick) {
            *found.entry(sample.choices.clone()).or_default().entry((gold, pick)).or_default() += 1;
        }
    }
    found.retain(|choices, counts| {
        choices.len() <= MOST_CHOICES
            && counts.values().sum::<usize>() > choices.len()
            && choices.iter().all(|c| c.chars().count() <= 4)
    });
    found
}

/// The right choices as rows and the picked ones as columns; a cell is the darker, the larger its part of the row.
fn heat_map(choices: &[String], counts: &BTreeMap<(usize, usize), usize>) -> String {
    let (cell, left, top) = (64.0, 64.0, 26.0);
    let side = cell * choices.len() as f64;
    let (width, height) = (left + side, top + side);
    let mut svg =
        format!("<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\n");
    let middle = |number: usize, start: f64| start + cell * (number as f64 + 0.5);
    for (number, choice) in choices.iter().enumerate() {
        for (x, y) in [(middle(number, left), top / 2.0), (left / 2.0, middle(number, top))] {
            let _ = writeln!(svg, "<text x=\"{x}\" y=\"{}\" class=\"axis\">{}</text>", y + 4.0, escaped(choice));
        }
    }
    for gold in 0..choices.len() {
        let count = |pick: usize| counts.get(&(gold, pick)).copied().unwrap_or(0);
        let all = (0..choices.len()).map(count).sum::<usize>().max(1);
        for pick in 0..choices.len() {
            let part = count(pick) as f64 / all as f64;
            let class = if part > 0.5 { "dark" } else { "light" };
            let _ = writeln!(
                svg,
                "<rect x=\"{}\" y=\"{}\" width=\"{cell}\" height=\"{cell}\" fill-opacity=\"{part:.3}\"/>\
                 <text x=\"{}\" y=\"{}\" class=\"{class}\">{}</text>",
                left + cell * pick as f64,
                top + cell * gold as f64,
                middle(pick, left),
                middle(gold, top) + 4.0,
                count(pick)
            );
        }
    }
    svg + "</svg>\n"
}

fn html_table(headings: &[String], rows: &[Vec<String>]) -> String {
    let cells = |kind: &str, row: &[String]| -> String {
        row.iter().map(|cell| format!("<{kind} dir=\"auto\">{}</{kind}>", escaped(cell))).collect()
    };
    let body: String = rows.iter().map(|row| format!("<tr>{}</tr>\n", cells("td", row))).collect();
    format!("<table>\n<tr>{}</tr>\n{body}</table>\n", cells("th", headings))
}

/// The report of a run. `about` names the model and its settings.
pub fn to_html(finished: &[Finished<'_>], groups: &[Group], about: &serde_json::Value, seed: u64) -> String {
    let headings: Vec<String> = HEADINGS.iter().map(|heading| (*heading).to_owned()).collect();
    let settings: Vec<Vec<String>> = about
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| vec![name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)])
        .collect();
    let mut page = String::from(STYLE);
    page += &html_table(&["setting".into(), "value".into()], &settings);
    page += "<h2>Scores</h2>\n";
    page += &html_table(&headings, &table(finished, groups, seed));
    let entries: Vec<(String, f64, Option<f64>, usize)> = finished
        .iter()
        .map(|one| {
            let (metric, score) = one.scores()[0];
            let part = |value: f64| metric.percent(value) / 100.0;
            (one.prepared.task.full_name(), part(score.value), score.error.map(part), score.items)
        })
        .collect();
    page += &bars("By task (first metric, in percent, with standard error)", &entries);
    page += &bars("By length of the prompt", &by_length(finished));
    for (choices, counts) in confusions(finished) {
        page += "<h2>Right choice (rows) and picked choice (columns)</h2>\n";
        page += &heat_map(&choices, &counts);
    }
    page + "</body></html>\n"
}

const STYLE: &str = "<!doctype html>
<html lang=\"en\"><head><meta charset=\"utf-8\"><title>bayan eval</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { border: 1px solid #d5dbe1; padding: .25rem .6rem; text-align: start; }
th { background: #f2f5f8; }
svg { font: 12px system-ui, sans-serif; }
rect { fill: #2f7f79; }
.grid { stroke: #d5dbe1; }
.error { stroke: #1c2733; stroke-width: 2; }
.label { text-anchor: end; }
.axis { text-anchor: middle; fill: #5b6875; }
.light { text-anchor: middle; fill: #1c2733; }
.dark { text-anchor: middle; fill: #ffffff; }
</style></head><body>
<h1>bayan eval</h1>
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_as_dark_as_its_part_of_the_row() {
        let choices = ["أ".to_owned(), "<".to_owned()];
        let svg = heat_map(&choices, &BTreeMap::from([((0, 0), 3), ((0, 1), 1), ((1, 0), 2)]));
        let opacities: Vec<&str> =
            svg.split("fill-opacity=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert_eq!(opacities, ["0.750", "0.250", "1.000", "0.000"]);
        assert_eq!(svg.matches("class=\"dark\"").count(), 2);
        assert!(svg.contains(">&lt;</text>") && svg.contains(">أ</text>") && !svg.contains("><<"));
    }
}
