//! The plot: pairs per second of many threads, and the longest wait for one shared key.

use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::Run;
use crate::peers::Peer;
use crate::scenarios::{Health, Setting};
use crate::schedule::Measured;
use crate::summary::Summary;

const SIZE: (u32, u32) = (1100, 560);
/// Numbers of nodes in the plot of pairs.
const NODES: usize = 5;
const FONT: &str = "sans-serif";
/// Colours of Okabe and Ito, which colour-blind people can tell apart. The baseline is not a peer,
/// and grey.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 0, 0),
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(150, 150, 150),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error + Send + Sync>>;

struct Line {
    peer: Peer,
    dashed: bool,
    points: Vec<(f64, f64)>,
}

/// Returns the plot as SVG, on white, so that it is readable on a dark page too.
pub(crate) fn svg(run: &Run, all: &[Measured]) -> Result<String, Box<dyn Error + Send + Sync>> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let (title, charts) = root.split_vertically(90);
        let [first, second] = run.title();
        let centred = |size| (FONT, size).into_font().color(&BLACK);
        title
            .titled(&first, centred(20))?
            .titled(&second, centred(13))?;
        legend(&title)?;
        let (left, right) = charts.split_horizontally(SIZE.0 / 2);
        let is_left = |setting: Setting| {
            setting.nodes == NODES && !setting.one_key && setting.health == Health::Healthy
        };
        let rate = |summary: &Summary| summary.rate[1];
        let pairs = lines(all, is_left, rate, |_| false);
        let caption = format!("Lock and release, own keys, {NODES} nodes");
        chart(&left, &caption, "pairs per second", &pairs)?;
        let waits = lines(
            all,
            |setting| setting.one_key,
            |summary| summary.longest / 1e3,
            |setting| setting.nodes > 1,
        );
        let caption = "Longest wait, one key: 1 node (solid), 3 nodes (dashed)";
        chart(&right, caption, "ms", &waits)?;
        root.present()?;
    }
    Ok(text)
}

/// Draws values against threads, one line for each peer and style.
fn lines(
    all: &[Measured],
    is_shown: impl Fn(Setting) -> bool,
    value: impl Fn(&Summary) -> f64,
    is_dashed: impl Fn(Setting) -> bool,
) -> Vec<Line> {
    let mut lines = Vec::new();
    for peer in Peer::ALL {
        for dashed in [false, true] {
            let shown = all.iter().filter(|measured| {
                is_shown(measured.setting) && is_dashed(measured.setting) == dashed
            });
            let points = shown.filter_map(|measured| {
                let value = value(&Summary::of(measured.samples(peer)?));
                // A failure has no value on a logarithmic scale.
                (value > 0.0).then_some((measured.setting.threads as f64, value))
            });
            let points: Vec<_> = points.collect();
            if !points.is_empty() {
                lines.push(Line {
                    peer,
                    dashed,
                    points,
                });
            }
        }
    }
    lines
}

/// One legend for both charts, above them, where it hides no line.
fn legend(area: &Area<'_>) -> Drawn {
    const WIDTH: i32 = 132;
    for (place, peer) in (0..).zip(Peer::ALL) {
        let name = match peer {
            Peer::RedisLock => "redis-lock, sync",
            Peer::Baseline => "bare connections",
            peer => peer.name(),
        };
        let (x, y) = (30 + place * WIDTH, 70);
        area.draw(&PathElement::new([(x, y), (x + 20, y)], style(peer)))?;
        area.draw(&Text::new(name, (x + 26, y - 6), (FONT, 14)))?;
    }
    Ok(())
}

fn style(peer: Peer) -> ShapeStyle {
    let place = Peer::ALL.iter().position(|one| *one == peer);
    let width = if peer == Peer::Redguard { 3 } else { 2 };
    COLOURS[place.unwrap_or_default()].stroke_width(width)
}

fn chart(area: &Area<'_>, caption: &str, unit: &str, lines: &[Line]) -> Drawn {
    let values = || lines.iter().flat_map(|line| &line.points);
    let ends = |value: fn(&(f64, f64)) -> f64| {
        let least = values().map(value).fold(f64::INFINITY, f64::min);
        let most = values().map(value).fold(0.0, f64::max);
        if most > 0.0 {
            (least, most)
        } else {
            (1.0, 10.0)
        }
    };
    let (threads, range) = (ends(|point| point.0), ends(|point| point.1));
    let mut marks: Vec<f64> = values().map(|point| point.0).collect();
    marks.sort_unstable_by(f64::total_cmp);
    marks.dedup();
    // A value outside of the chart would be drawn there.
    let tens = (-3..9).map(|power| 10f64.powi(power));
    let tens: Vec<f64> = tens
        .filter(|ten| (range.0 * 0.7..range.1 * 1.5).contains(ten))
        .collect();
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .caption(caption, (FONT, 16))
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(
            (threads.0 * 0.8..threads.1 * 1.25)
                .log_scale()
                .with_key_points(marks),
            (range.0 * 0.7..range.1 * 1.5)
                .log_scale()
                .with_key_points(tens),
        )?;
    chart
        .configure_mesh()
        .max_light_lines(0)
        .bold_line_style(BLACK.mix(0.12))
        .x_desc("threads")
        .y_desc(unit)
        .x_label_formatter(&|threads| format!("{threads:.0}"))
        .y_label_formatter(&|value| grouped(*value))
        .label_style((FONT, 13))
        .draw()?;
    for line in lines {
        let style = style(line.peer);
        let points = || line.points.iter().copied();
        if line.dashed {
            chart.draw_series(DashedLineSeries::new(points(), 10, 6, style))?;
        } else {
            chart.draw_series(LineSeries::new(points(), style))?;
        }
        chart.draw_series(points().map(|point| Circle::new(point, 3, style.color.filled())))?;
    }
    Ok(())
}

/// Formats with a comma every three digits; numbers below one unchanged.
fn grouped(value: f64) -> String {
    if value < 1.0 {
        return value.to_string();
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
