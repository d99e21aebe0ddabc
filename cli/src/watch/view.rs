//! The visible part of the table: its order, its filter, and its first row. Keys change them.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::args::SortBy;

/// The state that keys change.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) sort: SortBy,
    /// Rows whose name or holder contains this text.
    pub(crate) filter: String,
    /// Whether keys go to the filter.
    pub(crate) is_typing: bool,
    /// The first row on the screen.
    pub(crate) top: usize,
}

/// The effect of a key besides the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Redraw,
    Quit,
    Suspend,
}

impl View {
    pub(crate) fn new(sort: SortBy) -> View {
        View {
            sort,
            filter: String::new(),
            is_typing: false,
            top: 0,
        }
    }

    /// Applies a key; `page` is the number of rows on the screen, `rows` that of the table.
    pub(crate) fn press(&mut self, key: KeyEvent, page: usize, rows: usize) -> Request {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Request::Quit,
                KeyCode::Char('z') => Request::Suspend,
                _ => Request::Redraw,
            };
        }
        if self.is_typing {
            self.edit_filter(key.code);
            return Request::Redraw;
        }
        let last = rows.saturating_sub(page);
        match key.code {
            KeyCode::Char('q') => return Request::Quit,
            KeyCode::Char('n') => self.sort = SortBy::Name,
            KeyCode::Char('h') => self.sort = SortBy::Holder,
            KeyCode::Char('e') => self.sort = SortBy::End,
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Down | KeyCode::Char('j') => self.top += 1,
            KeyCode::Up | KeyCode::Char('k') => self.top = self.top.saturating_sub(1),
            KeyCode::PageDown | KeyCode::Char(' ') => self.top += page,
            KeyCode::PageUp => self.top = self.top.saturating_sub(page),
            KeyCode::Home => self.top = 0,
            KeyCode::End => self.top = last,
            _ => {}
        }
        self.top = self.top.min(last);
        Request::Redraw
    }

    fn edit_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => _ = self.filter.pop(),
            KeyCode::Char(c) => self.filter.push(c),
            _ => {}
        }
        self.top = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(view: &mut View, codes: &[KeyCode]) -> Request {
        let mut request = Request::Redraw;
        for code in codes {
            request = view.press(KeyEvent::new(*code, KeyModifiers::NONE), 10, 25);
        }
        request
    }

    #[test]
    fn keys_scroll_within_the_table() {
        let mut view = View::new(SortBy::Name);
        for (code, top) in [
            (KeyCode::Down, 1),
            (KeyCode::Up, 0),
            (KeyCode::Up, 0),
            (KeyCode::PageDown, 10),
            (KeyCode::PageDown, 15),
            (KeyCode::Home, 0),
            (KeyCode::End, 15),
        ] {
            press(&mut view, &[code]);
            assert_eq!(view.top, top, "{code:?}");
        }
    }

    #[test]
    fn keys_sort_and_filter() {
        let mut view = View::new(SortBy::Name);
        press(&mut view, &[KeyCode::Char('e'), KeyCode::Down]);
        assert_eq!((view.sort, view.top), (SortBy::End, 1));
        press(
            &mut view,
            &[KeyCode::Char('/'), KeyCode::Char('q'), KeyCode::Char('e')],
        );
        press(&mut view, &[KeyCode::Backspace, KeyCode::Enter]);
        assert_eq!((&*view.filter, view.top, view.sort), ("q", 0, SortBy::End));
        press(&mut view, &[KeyCode::Esc]);
        assert_eq!(view.filter, "");
        assert_eq!(press(&mut view, &[KeyCode::Char('q')]), Request::Quit);
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(view.press(interrupt, 10, 25), Request::Quit);
    }
}
