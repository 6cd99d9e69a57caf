//! A sweep as a picture: one chart a series, tokens a second over the context, with the band from least to greatest.

use anyhow::Result;
use plotters::prelude::*;

use super::row::Row;

/// Speed along the context.
pub(super) struct Series {
    name: &'static str,
    points: Vec<Point>,
}

struct Point {
    context: f64,
    least: f64,
    median: f64,
    greatest: f64,
}

impl Series {
    pub(super) fn new(name: &'static str) -> Series {
        Series { name, points: Vec::new() }
    }

    /// Adds what was measured at a context.
    pub(super) fn push(&mut self, context: usize, row: &Row) {
        self.points.push(Point {
            context: context as f64,
            least: row.tokens_per_second_min,
            median: row.tokens_per_second,
            greatest: row.tokens_per_second_max,
        });
    }
}

/// Pixels of a chart.
const WIDTH: u32 = 900;
const HEIGHT: u32 = 360;

/// The picture as SVG.
///
/// # Errors
/// If a number cannot be drawn.
pub(super) fn svg(title: &str, series: &[Series]) -> Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, HEIGHT * series.len() as u32)).into_drawing_area();
        area.fill(&WHITE)?;
        for (series, area) in series.iter().zip(area.split_evenly((series.len(), 1))) {
            let most = |value: fn(&Point) -> f64| series.points.iter().map(value).fold(1.0, f64::max);
            let mut chart = ChartBuilder::on(&area)
                .caption(format!("{title}: {}", series.name), ("sans-serif", 18))
                .margin(12)
                .x_label_area_size(40)
                .y_label_area_size(70)
                .build_cartesian_2d(0.0..most(|p| p.context) * 1.02, 0.0..most(|p| p.greatest) * 1.1)?;
            chart
                .configure_mesh()
                .x_desc("tokens of context")
                .y_desc("tokens a second")
                .x_label_formatter(&|v| format!("{v:.0}"))
                .y_label_formatter(&|v| format!("{v:.0}"))
                .light_line_style(WHITE)
                .draw()?;
            let line = |value: fn(&Point) -> f64| series.points.iter().map(move |p| (p.context, value(p)));
            chart.draw_series(LineSeries::new(line(|p| p.least), &BLUE.mix(0.3)))?;
            chart.draw_series(LineSeries::new(line(|p| p.greatest), &BLUE.mix(0.3)))?;
            chart.draw_series(LineSeries::new(line(|p| p.median), BLUE.stroke_width(2)).point_size(3))?;
        }
        area.present()?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_has_its_chart() {
        let series = ["prefill", "decode"].map(|name| {
            let point = |i: f64| Point { context: 100.0 * i, least: 8.0 / i, median: 9.0 / i, greatest: 10.0 / i };
            Series { name, points: vec![point(1.0), point(2.0), point(3.0)] }
        });
        let picture = svg("a <model>", &series).unwrap();
        assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
        assert!(picture.contains("a &lt;model&gt;: prefill") && picture.contains(": decode"), "{picture}");
        assert_eq!(picture.matches("<polyline").count() % 2, 0);
        assert!(picture.matches("<polyline").count() >= 6, "three lines a chart");
    }
}
