//! The picture: a chart for each series, with a logarithmic scale of the values.

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::{Result, Series};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws all charts, on white, so that they are readable on a dark page too.
pub(crate) fn svg(measured: &[(&Series, Vec<(f64, f64)>)]) -> Result<String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (1650, 640)).into_drawing_area();
        root.fill(&WHITE)?;
        for (area, (series, points)) in root.split_evenly((2, 3)).iter().zip(measured) {
            chart(area, series, points)?;
        }
        root.present()?;
    }
    Ok(text)
}

fn chart(area: &Area<'_>, series: &Series, points: &[(f64, f64)]) -> Result<()> {
    let ends = |value: fn(&(f64, f64)) -> f64| {
        let values = || points.iter().map(value);
        (
            values().fold(f64::INFINITY, f64::min),
            values().fold(0.0, f64::max),
        )
    };
    let (x, y) = (ends(|point| point.0), ends(|point| point.1));
    let marks: Vec<f64> = points.iter().map(|point| point.0).collect();
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .caption(series.name, ("sans-serif", 16))
        .x_label_area_size(30)
        .y_label_area_size(60)
        .build_cartesian_2d(
            (x.0 * 0.8..x.1 * 1.25).log_scale().with_key_points(marks),
            0.0..y.1 * 1.2,
        )?;
    chart
        .configure_mesh()
        .max_light_lines(0)
        .bold_line_style(BLACK.mix(0.12))
        .y_desc(series.unit)
        .x_label_formatter(&|value| format!("{value:.0}"))
        .y_label_formatter(&|value| format!("{value:.0}"))
        .draw()?;
    chart.draw_series(LineSeries::new(
        points.iter().copied(),
        BLACK.stroke_width(2),
    ))?;
    let dots = points
        .iter()
        .map(|point| Circle::new(*point, 3, BLACK.filled()));
    chart.draw_series(dots)?;
    Ok(())
}
