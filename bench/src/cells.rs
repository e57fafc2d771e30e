//! The cells of the matrix: which loads are measured, on how many cores, and under which names. Sends nothing.
//!
//! The whole product of shapes, forms, sizes, connections and cores would take hours. The list has every value of each,
//! each at least once beside a cell that differs in that value alone.

use std::fmt::Write as _;

use serde::Serialize;

use crate::error::Error;
use crate::sender::Compression;
use crate::shape::Shape;
use crate::worker::InFlight;

/// How bodies travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Form {
    Plain,
    Gzip,
    Zstd,
    Tls,
}

impl Form {
    fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Tls => "tls",
        }
    }

    fn compression(self) -> Option<&'static str> {
        match self {
            Self::Plain | Self::Tls => None,
            Self::Gzip => Compression::Gzip.token(),
            Self::Zstd => Compression::Zstd.token(),
        }
    }
}

/// One kind of load on one kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Cell {
    pub(crate) shape: Shape,
    pub(crate) form: Form,
    pub(crate) spans_per_request: u32,
    pub(crate) connections: u32,
    pub(crate) in_flight: InFlight,
    pub(crate) server_cores: u32,
}

use Form::{Gzip, Plain, Tls, Zstd};
use InFlight::{EachConnection, Together};
use Shape::{L, S};

const fn cell(
    shape: Shape,
    form: Form,
    spans_per_request: u32,
    connections: u32,
    in_flight: InFlight,
    server_cores: u32,
) -> Cell {
    Cell { shape, form, spans_per_request, connections, in_flight, server_cores }
}

/// In flight is as much as keeps a server busy over a group commit of the journal, and less than its queue (64 MiB) holds:
/// a refusal would be measured as a span that cost nothing.
pub(crate) const CELLS: [Cell; 27] = [
    cell(S, Plain, 500, 8, EachConnection(8), 1),
    cell(S, Gzip, 500, 8, EachConnection(8), 1),
    cell(S, Zstd, 500, 8, EachConnection(8), 1),
    cell(S, Tls, 500, 8, EachConnection(8), 1),
    cell(L, Plain, 500, 8, EachConnection(8), 1),
    cell(L, Gzip, 500, 8, EachConnection(8), 1),
    cell(L, Zstd, 500, 8, EachConnection(8), 1),
    cell(L, Tls, 500, 8, EachConnection(8), 1),
    cell(S, Plain, 100, 8, EachConnection(32), 1),
    cell(S, Plain, 10, 8, EachConnection(128), 1),
    cell(S, Plain, 1, 8, EachConnection(200), 1),
    cell(S, Plain, 10, 32, EachConnection(32), 1),
    cell(S, Plain, 500, 200, EachConnection(1), 1),
    cell(S, Plain, 100, 200, EachConnection(4), 1),
    cell(S, Gzip, 100, 200, EachConnection(4), 1),
    cell(S, Zstd, 100, 200, EachConnection(4), 1),
    cell(S, Tls, 100, 200, EachConnection(4), 1),
    cell(L, Plain, 100, 200, EachConnection(2), 1),
    cell(S, Plain, 10, 200, EachConnection(8), 1),
    cell(S, Plain, 1, 200, EachConnection(8), 1),
    cell(S, Plain, 100, 5_000, Together(800), 1),
    cell(S, Plain, 10, 5_000, Together(1_600), 1),
    cell(S, Tls, 10, 5_000, Together(1_600), 1),
    cell(S, Plain, 500, 8, EachConnection(8), 2),
    cell(S, Gzip, 500, 8, EachConnection(8), 2),
    cell(S, Plain, 100, 200, EachConnection(4), 2),
    cell(S, Plain, 10, 5_000, Together(1_600), 2),
];

impl Cell {
    /// `s-plain-500x8`: shape, form, spans a request, connections; `-2c` for two cores of the server.
    pub(crate) fn name(&self) -> String {
        let Self { shape, form, spans_per_request, connections, in_flight: _, server_cores } = self;
        let cores = if *server_cores > 1 { format!("-{server_cores}c") } else { String::new() };
        format!("{}-{}-{spans_per_request}x{connections}{cores}", shape.as_str(), form.as_str())
    }

    /// Requests that a core takes in `seconds` when it is faster than any was so far: a compressed body cannot be
    /// patched, so all of them are made beforehand.
    fn pool_requests(&self, seconds: u32) -> u32 {
        const REQUESTS_MIN: u32 = 1_000;
        let spans_per_second = if self.shape == L { 1_200_000 } else { 2_000_000 };
        (spans_per_second / self.spans_per_request * seconds * self.server_cores).max(REQUESTS_MIN)
    }

    /// The options of `load`, those of TLS apart.
    fn load_options(&self, seconds: u32) -> String {
        let Self { shape, form, spans_per_request, connections, in_flight, server_cores: _ } = self;
        let mut options = format!(
            "--shape {} --spans-per-request {spans_per_request} --connections {connections}",
            shape.as_str()
        );
        // Writing to a string cannot fail.
        let _written = match in_flight {
            EachConnection(each) => write!(options, " --in-flight {each}"),
            Together(all) => write!(options, " --in-flight-together {all}"),
        };
        if let Some(compression) = form.compression() {
            let pool = self.pool_requests(seconds);
            let _written = write!(options, " --compression {compression} --pool-requests {pool}");
        }
        options
    }
}

/// Options of `cells`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Those of these names; all without a name
    names: Vec<String>,
    /// How long they will be measured
    #[arg(long, default_value_t = 12)]
    seconds: u32,
}

/// The cells that `names` name, in the order of the list; all when there is no name.
///
/// # Errors
/// [`Error::Options`] for a name that no cell has.
pub(crate) fn chosen(names: &[String]) -> Result<Vec<Cell>, Error> {
    if let Some(unknown) = names.iter().find(|name| CELLS.iter().all(|cell| cell.name() != **name)) {
        let known: Vec<String> = CELLS.iter().map(Cell::name).collect();
        return Err(Error::Options(format!("no cell is called '{unknown}': {}", known.join(" "))));
    }
    let is_chosen = |cell: &Cell| names.is_empty() || names.contains(&cell.name());
    Ok(CELLS.into_iter().filter(is_chosen).collect())
}

/// One line a cell: name, cores of the server, form, options of `load`, with tabs between.
///
/// # Errors
/// [`Error::Options`] for a name that no cell has.
pub(crate) fn run(args: &Args) -> Result<String, Error> {
    let line = |cell: Cell| {
        let (form, options) = (cell.form.as_str(), cell.load_options(args.seconds));
        format!("{}\t{}\t{form}\t{options}\n", cell.name(), cell.server_cores)
    };
    Ok(chosen(&args.names)?.into_iter().map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load;
    use clap::Parser;
    use std::collections::BTreeSet;

    #[test]
    fn every_value_of_every_dimension_has_a_cell() {
        let all = |wanted: &[String], value: fn(&Cell) -> String| {
            let found: BTreeSet<String> = CELLS.iter().map(value).collect();
            assert!(wanted.iter().all(|wanted| found.contains(wanted)), "{wanted:?} {found:?}");
        };
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        all(&words(&["s", "l"]), |cell| cell.shape.as_str().to_owned());
        all(&words(&["plain", "gzip", "zstd", "tls"]), |cell| cell.form.as_str().to_owned());
        all(&words(&["1", "10", "100", "500"]), |cell| cell.spans_per_request.to_string());
        all(&words(&["8", "200", "5000"]), |cell| cell.connections.to_string());
        all(&words(&["1", "2"]), |cell| cell.server_cores.to_string());
        let names: BTreeSet<String> = CELLS.iter().map(Cell::name).collect();
        assert_eq!(names.len(), CELLS.len());
    }

    #[test]
    fn what_is_in_flight_fits_the_journals_queue() {
        for cell in CELLS {
            let requests = match cell.in_flight {
                EachConnection(each) => each * cell.connections,
                Together(all) => all,
            };
            let bytes_a_span = if cell.shape == L { 825 } else { 425 };
            let bytes = requests * cell.spans_per_request * bytes_a_span;
            assert!(bytes < 64 << 20, "{}: {bytes}", cell.name());
            assert!(requests >= 64, "{}", cell.name());
        }
    }

    #[test]
    fn the_options_of_a_cell_are_options_of_load() {
        #[derive(Parser)]
        struct Load {
            #[command(flatten)]
            args: load::Args,
        }
        for cell in CELLS {
            let command = format!("load {}", cell.load_options(12));
            let args = Load::try_parse_from(command.split_ascii_whitespace()).unwrap().args;
            assert_eq!(args.spans_per_request, cell.spans_per_request);
            assert_eq!(args.in_flight(), cell.in_flight);
            assert_eq!(args.compression.token(), cell.form.compression());
        }
    }

    #[test]
    fn cells_are_chosen_by_name() {
        let chosen_names = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            chosen(&names).map(|cells| cells.iter().map(Cell::name).collect::<Vec<_>>())
        };
        assert_eq!(chosen_names(&[]).unwrap().len(), CELLS.len());
        let two = chosen_names(&["s-plain-10x5000-2c", "s-plain-500x8"]).unwrap();
        assert_eq!(two, ["s-plain-500x8", "s-plain-10x5000-2c"]);
        assert!(chosen_names(&["s-plain-7x8"]).is_err());
    }
}
