//! What `ringway top` shows at one instant, as lines or on a terminal.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Row as Cells, Table};

use super::table::columns;

/// Columns of the terminal between two of the table.
const SPACING: usize = 2;

/// What is shown at one instant.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Why there is nothing newer; empty as a rule.
    pub(super) told: String,
    /// Two lines about the gateway.
    pub(super) head: [String; 2],
    /// The columns' names, then a row for each session.
    pub(super) cells: Vec<Vec<String>>,
}

impl View {
    /// As lines, for a stream.
    pub(super) fn text(&self) -> String {
        let told = if self.told.is_empty() { String::new() } else { format!("{}\n", self.told) };
        let [first, second] = &self.head;
        format!("{told}{first}\n{second}\n\n{}", columns(&self.cells, &RIGHT))
    }

    /// On a terminal, as much as has room.
    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let told = u16::from(!self.told.is_empty());
        let rows = [told, 3, 0].map(Constraint::Length);
        let rows = [rows[0], rows[1], Constraint::Fill(1)];
        let [above, head, below] = Layout::vertical(rows).areas(frame.area());
        frame.render_widget(Paragraph::new(self.told.as_str()).red(), above);
        frame.render_widget(Paragraph::new(self.head.join("\n")).bold(), head);
        let [names, sessions @ ..] = self.cells.as_slice() else { return };
        let widths = (0..names.len()).map(|column| {
            let cells = self.cells.iter().filter_map(|cells| cells.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        });
        // What does not fit is left out, from the right: no column is shown in part.
        let mut taken = 0;
        let widths = widths.take_while(|width| {
            taken += width + SPACING;
            taken <= usize::from(below.width) + SPACING
        });
        let widths = widths.map(|width| u16::try_from(width).unwrap_or(u16::MAX));
        let widths: Vec<_> = widths.map(Constraint::Length).collect();
        let line = |(column, cell): (usize, &String)| {
            let line = Line::from(cell.clone());
            if RIGHT.contains(&column) { line.right_aligned() } else { line }
        };
        let cells =
            |cells: &Vec<String>| Cells::new(cells.iter().take(widths.len()).enumerate().map(line));
        // What is below the last line is not made.
        let shown = sessions.iter().take(usize::from(below.height));
        let shown = shown.map(|row| cells(row).style(style_of(&row[1])));
        let table = Table::new(shown, &widths).column_spacing(SPACING as u16);
        frame.render_widget(table.header(cells(names).reversed()), below);
    }
}

/// How a session's state looks.
fn style_of(state: &str) -> Style {
    match state {
        "waiting" => Style::new().fg(Color::Yellow),
        "parked" => Style::new().fg(Color::Cyan),
        _ => Style::new(),
    }
}

/// Columns that are flush right.
const RIGHT: [usize; 5] = [2, 7, 8, 9, 10];
