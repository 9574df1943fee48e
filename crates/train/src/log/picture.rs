//! The loss plot as a PNG: lines, axes and text drawn into a pixel buffer.

use std::io::Write;

use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};

use super::{LogEntry, curve, label, range, smoothed, ticks};

const WIDTH: usize = 960;
const HEIGHT: usize = 540;
const LEFT: usize = 80;
const RIGHT: usize = 20;
const TOP: usize = 20;
const BOTTOM: usize = 50;

type Colour = [u8; 3];
const WHITE: Colour = [255, 255, 255];
const GREY: Colour = [225, 225, 225];
const BLACK: Colour = [40, 40, 40];
const FAINT: Colour = [170, 200, 235];
const BLUE: Colour = [30, 90, 180];
const ORANGE: Colour = [220, 110, 20];

struct Canvas {
    pixels: Vec<Colour>,
}

impl Canvas {
    fn dot(&mut self, x: usize, y: usize, colour: Colour, cover: f64) {
        if x >= WIDTH || y >= HEIGHT {
            return;
        }
        let pixel = &mut self.pixels[y * WIDTH + x];
        for (channel, over) in pixel.iter_mut().zip(colour) {
            *channel = (f64::from(*channel) * (1.0 - cover) + f64::from(over) * cover).round() as u8;
        }
    }

    /// Draws an antialiased line of `width` pixels.
    fn line(&mut self, from: (f64, f64), to: (f64, f64), width: f64, colour: Colour) {
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let length = dx.hypot(dy).max(1e-9);
        let reach = width / 2.0 + 1.0;
        let bounds = |a: f64, b: f64, most: usize| {
            ((a.min(b) - reach).max(0.0) as usize, ((a.max(b) + reach).max(0.0) as usize).min(most - 1))
        };
        let ((x0, x1), (y0, y1)) = (bounds(from.0, to.0, WIDTH), bounds(from.1, to.1, HEIGHT));
        for y in y0..=y1 {
            for x in x0..=x1 {
                let (px, py) = (x as f64 - from.0, y as f64 - from.1);
                let along = ((px * dx + py * dy) / (length * length)).clamp(0.0, 1.0);
                let distance = (px - along * dx).hypot(py - along * dy);
                let cover = (width / 2.0 + 0.5 - distance).clamp(0.0, 1.0);
                if cover > 0.0 {
                    self.dot(x, y, colour, cover);
                }
            }
        }
    }

    /// Draws the characters that [`glyph`] has at twice their size; `x` is the left edge.
    fn text(&mut self, x: usize, y: usize, text: &str) {
        for (place, c) in text.chars().enumerate() {
            for (row, bits) in glyph(c).into_iter().enumerate() {
                for column in (0..3).filter(|column| bits >> (2 - column) & 1 == 1) {
                    for (sx, sy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                        self.dot(x + ADVANCE * place + 2 * column + sx, y + 2 * row + sy, BLACK, 1.0);
                    }
                }
            }
        }
    }
}

/// The width of a character with the space after it, in pixels.
const ADVANCE: usize = 8;

/// A glyph of 3 × 5 pixels: each row is in the low three bits of a byte. Letters have the forms of capitals.
fn glyph(c: char) -> [u8; 5] {
    match c {
        '0' => [7, 5, 5, 5, 7],
        '1' => [2, 6, 2, 2, 7],
        '2' => [7, 1, 7, 4, 7],
        '3' => [7, 1, 7, 1, 7],
        '4' => [5, 5, 7, 1, 1],
        '5' => [7, 4, 7, 1, 7],
        '6' => [7, 4, 7, 5, 7],
        '7' => [7, 1, 1, 2, 2],
        '8' => [7, 5, 7, 5, 7],
        '9' => [7, 5, 7, 1, 7],
        '-' => [0, 0, 7, 0, 0],
        '.' => [0, 0, 0, 0, 2],
        'a' => [2, 5, 7, 5, 5],
        'c' => [7, 4, 4, 4, 7],
        'd' => [6, 5, 5, 5, 6],
        'e' => [7, 4, 6, 4, 7],
        'g' => [7, 4, 5, 5, 7],
        'h' => [5, 5, 7, 5, 5],
        'i' => [7, 2, 2, 2, 7],
        'l' => [4, 4, 4, 4, 7],
        'm' => [5, 7, 7, 5, 5],
        'n' => [6, 5, 5, 5, 5],
        'o' => [7, 5, 5, 5, 7],
        'p' => [7, 5, 7, 4, 4],
        'r' => [6, 5, 6, 5, 5],
        's' => [7, 4, 7, 1, 7],
        't' => [7, 2, 2, 2, 2],
        'u' => [5, 5, 5, 5, 7],
        'v' => [5, 5, 5, 5, 2],
        _ => [0; 5],
    }
}

/// The plot of training (blue, smoothed over faint) and evaluation (orange) loss over steps.
pub(super) fn png(entries: &[LogEntry]) -> Vec<u8> {
    let training = curve(entries, |e| e.loss);
    let (smooth, evaluation) = (smoothed(&training), curve(entries, |e| e.eval_loss));
    let (x_low, x_high) = range(&[&training, &evaluation], |p| p.0);
    let (y_low, y_high) = range(&[&training, &evaluation], |p| p.1);
    let mut canvas = Canvas { pixels: vec![WHITE; WIDTH * HEIGHT] };
    let to_x = |x: f64| LEFT as f64 + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT) as f64;
    let to_y = |y: f64| (HEIGHT - BOTTOM) as f64 - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM) as f64;
    let (bottom, right) = ((HEIGHT - BOTTOM) as f64, (WIDTH - RIGHT) as f64);
    for y in ticks(y_low, y_high, 6) {
        canvas.line((LEFT as f64, to_y(y)), (right, to_y(y)), 1.0, GREY);
        let text = label(y);
        canvas.text(LEFT.saturating_sub(10 + ADVANCE * text.len()), (to_y(y) - 5.0).max(0.0) as usize, &text);
    }
    for x in ticks(x_low, x_high, 8) {
        canvas.line((to_x(x), TOP as f64), (to_x(x), bottom), 1.0, GREY);
        let text = label(x);
        canvas.text((to_x(x) as usize).saturating_sub(ADVANCE * text.len() / 2), HEIGHT - BOTTOM + 12, &text);
    }
    canvas.line((LEFT as f64, TOP as f64), (LEFT as f64, bottom), 1.5, BLACK);
    canvas.line((LEFT as f64, bottom), (right, bottom), 1.5, BLACK);
    for (points, width, colour) in [(&training, 1.0, FAINT), (&smooth, 2.5, BLUE), (&evaluation, 2.5, ORANGE)] {
        for pair in points.windows(2) {
            canvas.line((to_x(pair[0].0), to_y(pair[0].1)), (to_x(pair[1].0), to_y(pair[1].1)), width, colour);
        }
        if let ([only], true) = (points.as_slice(), width > 1.0) {
            canvas.line((to_x(only.0), to_y(only.1)), (to_x(only.0), to_y(only.1)), 6.0, colour);
        }
    }
    canvas.text(8, TOP, "loss");
    canvas.text((LEFT + WIDTH - RIGHT - ADVANCE * "step".len()) / 2, HEIGHT - 18, "step");
    let curves = [("each step", &training, FAINT), ("smoothed", &smooth, BLUE), ("evaluation", &evaluation, ORANGE)];
    let drawn = curves.into_iter().filter(|(_, points, _)| !points.is_empty());
    for (row, (name, _, colour)) in drawn.enumerate() {
        let (x, y) = (WIDTH - RIGHT - 140, TOP + 10 + 18 * row);
        canvas.line((x as f64, (y + 5) as f64), ((x + 30) as f64, (y + 5) as f64), 3.0, colour);
        canvas.text(x + 40, y, name);
    }
    encode(&canvas)
}

fn encode(canvas: &Canvas) -> Vec<u8> {
    let mut raw = Vec::with_capacity(HEIGHT * (1 + 3 * WIDTH));
    for row in canvas.pixels.chunks(WIDTH) {
        raw.push(0); // no filter
        row.iter().for_each(|pixel| raw.extend_from_slice(pixel));
    }
    let mut compressed = ZlibEncoder::new(Vec::new(), Compression::default());
    // Writing into memory does not fail.
    let data = compressed.write_all(&raw).and_then(|()| compressed.finish()).unwrap_or_default();
    let mut header = Vec::new();
    header.extend((WIDTH as u32).to_be_bytes());
    header.extend((HEIGHT as u32).to_be_bytes());
    header.extend([8, 2, 0, 0, 0]); // 8 bits, red green blue
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, bytes) in [(b"IHDR", &header), (b"IDAT", &data), (b"IEND", &Vec::new())] {
        png.extend((bytes.len() as u32).to_be_bytes());
        let mut crc = Crc::new();
        crc.update(kind);
        crc.update(bytes);
        png.extend_from_slice(kind);
        png.extend_from_slice(bytes);
        png.extend(crc.sum().to_be_bytes());
    }
    png
}
