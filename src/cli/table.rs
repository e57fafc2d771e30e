//! Text for people: aligned columns, durations, sizes, times. Decides nothing.

use std::time::Duration;

/// Rows of cells; columns align when rendered.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Every column left-aligned.
    pub(super) fn render(&self) -> String {
        self.lines(|cell, width| format!("{cell:<width$}"))
    }

    /// The first column left-aligned, numbers after it right-aligned.
    pub(super) fn render_right(&self) -> String {
        let first = self.width(0);
        self.lines(|cell, width| {
            if width == first && cell.starts_with("  ") {
                format!("{cell:<width$}")
            } else {
                format!("{cell:>width$}")
            }
        })
    }

    fn width(&self, column: usize) -> usize {
        self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    }

    fn lines(&self, align: impl Fn(&str, usize) -> String) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(|column| self.width(column)).collect();
        let line = |row: &Vec<String>| {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, &width)| align(cell, width)).collect();
            format!("{}\n", cells.join("  ").trim_end())
        };
        self.rows.iter().map(line).collect()
    }
}

/// Three significant digits with the unit that suits.
pub(crate) fn duration(nanos: u64) -> String {
    let span = Duration::from_nanos(nanos);
    match nanos {
        0..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{:.1}us", span.as_secs_f64() * 1e6),
        1_000_000..1_000_000_000 => format!("{:.1}ms", span.as_secs_f64() * 1e3),
        1_000_000_000..60_000_000_000 => format!("{:.2}s", span.as_secs_f64()),
        _ => format!("{}m{:02}s", span.as_secs() / 60, span.as_secs() % 60),
    }
}

/// With a binary unit.
pub(crate) fn bytes(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// `2026-11-23 23:50:00.123`, UTC. Days to a date by Howard Hinnant's civil-from-days arithmetic.
pub(super) fn time(unix_nanos: u64) -> String {
    let (seconds, millis) = (unix_nanos / 1_000_000_000, unix_nanos / 1_000_000 % 1_000);
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{millis:03}")
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_read_as_people_write_them() {
        assert_eq!(time(0), "1970-01-01 00:00:00.000");
        assert_eq!(time(1_709_164_799_999_000_000), "2024-02-28 23:59:59.999");
        assert_eq!(time(1_709_164_800_000_000_000), "2024-02-29 00:00:00.000");
        assert_eq!(duration(1_234_567), "1.2ms");
        assert_eq!(duration(75_000_000_000), "1m15s");
        assert_eq!(bytes(1_536), "1.5 KiB");
        assert_eq!(unhex(&hex(&[0, 255, 16])), Some(vec![0, 255, 16]));
        assert_eq!(unhex("zz"), None);
    }
}
