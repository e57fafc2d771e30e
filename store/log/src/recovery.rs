//! Says what lies in a partition's directory: which commits are whole, which end was never written completely, what is
//! damaged. Reads only; [`crate::writer`] acts on what is found here.
//!
//! A commit that does not check out was either never written completely, and then was never acknowledged and may be cut
//! off, or was whole once, and then must be kept and reported. It is **torn** only if it is in the newest segment,
//! nothing valid and nothing else written stands behind it, and either its header's sector still holds the zeros
//! the file was made of, or there are more such sectors in it than its header admits, or the file ends inside it.
//! Anything else is **damage**.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use store_model::{Epoch, Offset, UnixNanos};

use crate::disk::{Disk, DiskFile, read_full};
use crate::error::Error;
use crate::format::{
    CommitHeader, FileName, HeaderProblem, Kind, SECTOR_BYTES, SEGMENT_HEADER_BYTES, Salt, SegmentHeader,
    TABLE_ENTRY_BYTES, is_zero,
};
use crate::segment::{Block, Damage, Map, SegmentFile};
use crate::view::{Loaded, Segment};

/// Where the records of a segment have to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// The newest segment: wherever its commits end, and the last one may be torn.
    Newest,
    /// Exactly here: the next segment, or a marker, says so.
    Until(Offset),
    /// Here, where the next segment begins, or earlier.
    Before(Offset),
}

impl Expect {
    /// Whether the records of the segment may end here.
    fn allows(self, end: Offset) -> bool {
        match self {
            Self::Newest => true,
            Self::Until(known) => end == known,
            Self::Before(next) => end <= next,
        }
    }
}

/// What stands behind the last commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Zeros, a seal, or the end of the file.
    Clean,
    /// A commit that was never written completely.
    Torn,
}

/// What one pass over a segment found.
pub(crate) struct Walk {
    pub(crate) map: Map,
    pub(crate) end: Offset,
    /// Where the commits end.
    pub(crate) used: u64,
    pub(crate) newest_at: UnixNanos,
    pub(crate) tail: Tail,
}

/// Checks every byte of a segment.
pub(crate) fn walk<F: DiskFile>(
    file: &SegmentFile<F>,
    base: Offset,
    length: u64,
    expect: Expect,
) -> Result<Walk, Error> {
    let mut walker = Walker {
        file,
        length,
        expect,
        position: SEGMENT_HEADER_BYTES,
        expected: base,
        newest_at: UnixNanos::default(),
        map: Map::default(),
    };
    let tail = loop {
        if let Some(tail) = walker.step()? {
            break tail;
        }
    };
    let Walker { position, mut expected, newest_at, mut map, .. } = walker;
    if let Expect::Until(end) = expect
        && expected < end
    {
        let reason = "the segment ends before its last record";
        map.damages.push(Damage { position, reason, first: expected, end });
        expected = end;
    }
    Ok(Walk { map, end: expected, used: position, newest_at, tail })
}

struct Walker<'a, F> {
    file: &'a SegmentFile<F>,
    length: u64,
    expect: Expect,
    position: u64,
    expected: Offset,
    newest_at: UnixNanos,
    map: Map,
}

impl<F: DiskFile> Walker<'_, F> {
    /// Goes past one commit or one damage; says what the tail is once there is nothing more.
    fn step(&mut self) -> Result<Option<Tail>, Error> {
        if self.position >= self.length || self.is_complete() {
            return Ok(Some(Tail::Clean));
        }
        match self.file.check(self.position, self.length, self.expected)? {
            // A seal that is not whole is written anew: it holds nothing that the commits do not say.
            Block::Intact(header) | Block::Broken { header, .. } if header.kind == Kind::Seal => {
                Ok(Some(Tail::Clean))
            }
            Block::Intact(header) => {
                self.pass(&header);
                Ok(None)
            }
            Block::Broken { header, damages, unwritten } => self.broken(&header, damages, unwritten),
            Block::Unreadable => self.unreadable(),
        }
    }

    /// Whether every record that the segment can hold was found. No commit is appended to a segment once there is a next
    /// one, and that one's name says where the offsets went on: whatever stands behind is half a seal, or was one.
    fn is_complete(&self) -> bool {
        matches!(self.expect, Expect::Until(end) | Expect::Before(end) if end == self.expected)
    }

    fn pass(&mut self, header: &CommitHeader) {
        let CommitHeader { base_offset, timestamp, .. } = *header;
        if base_offset > self.expected {
            self.lose("records before this commit are missing", base_offset);
        }
        self.map.note(base_offset, self.position);
        self.newest_at = self.newest_at.max(timestamp);
        self.expected = header.end_offset();
        self.position = self.position.saturating_add(header.extent()).min(self.length);
    }

    /// Notes that everything up to `end` is lost. The commit after a loss is always noted in the map, so that no search
    /// has to walk across it.
    fn lose(&mut self, reason: &'static str, end: Offset) {
        self.map.damages.push(Damage { position: self.position, reason, first: self.expected, end });
    }

    fn broken(
        &mut self,
        header: &CommitHeader,
        damages: Vec<Damage>,
        unwritten: bool,
    ) -> Result<Option<Tail>, Error> {
        let end = self.position.saturating_add(header.extent());
        let rest = self.rest(end.min(self.length), header.end_offset())?;
        if self.expect == Expect::Newest && unwritten && rest.next.is_none() && rest.data_end <= end {
            return Ok(Some(Tail::Torn));
        }
        self.pass(header);
        self.map.damages.extend(damages);
        Ok(None)
    }

    fn unreadable(&mut self) -> Result<Option<Tail>, Error> {
        let rest = self.rest(self.position, self.expected)?;
        if let Some((position, header)) = rest.next {
            self.lose("no valid commit before the next one", header.base_offset);
            self.position = position;
            self.expected = header.base_offset;
            self.map.entries.push(crate::format::Entry { offset: header.base_offset, position });
            return Ok(None);
        }
        if rest.data_end <= self.position {
            return Ok(Some(Tail::Clean));
        }
        // A commit takes whole sectors: a file that ends inside the first of them never held it.
        let unwritten = rest.first_is_zero || self.length - self.position < SECTOR_BYTES as u64;
        if self.expect == Expect::Newest && unwritten {
            return Ok(Some(Tail::Torn));
        }
        // Nobody can say any more how many records stood here, but each needed a place in a table.
        let most = self.expected.plus((rest.data_end - self.position) / TABLE_ENTRY_BYTES as u64);
        let end = match self.expect {
            Expect::Newest => most,
            Expect::Until(end) => end,
            Expect::Before(next) => most.min(next),
        };
        self.lose("no valid commit where one was written", end);
        self.expected = end;
        Ok(Some(Tail::Clean))
    }

    fn rest(&self, from: u64, expected: Offset) -> Result<Rest, Error> {
        let mut rest = Rest { first_is_zero: true, next: None, data_end: from };
        let mut buffer = vec![0; REST_CHUNK_BYTES];
        let mut position = from;
        loop {
            let filled = self.file.chunk_at(&mut buffer, position)?;
            for sector in buffer[..filled].chunks(SECTOR_BYTES) {
                if !is_zero(sector) {
                    rest.first_is_zero &= position != from;
                    rest.data_end = position + sector.len() as u64;
                    let header = CommitHeader::parse(sector, self.file.salt);
                    if let Some(header) = header.filter(|header| header.base_offset >= expected) {
                        rest.next = Some((position, header));
                        return Ok(rest);
                    }
                }
                position += sector.len() as u64;
            }
            if filled < buffer.len() {
                return Ok(rest);
            }
        }
    }
}

const REST_CHUNK_BYTES: usize = 256 << 10;

/// What stands in a segment from some position on.
struct Rest {
    first_is_zero: bool,
    /// The next valid commit header.
    next: Option<(u64, CommitHeader)>,
    /// The end of the last sector that is not zero; the start when all are.
    data_end: u64,
}

/// What has to be done about a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing.
    Sealed,
    /// It wants its seal.
    Unsealed,
    /// Its last commit was never written completely: it is cut off, then sealed.
    Torn,
    /// Its header is no header and nothing follows: it never held a record, and goes.
    Incomplete,
    /// It is kept as it is. `remember` is false where there is a marker already, and for versions unknown here.
    Damaged { remember: bool },
}

/// One segment of a directory.
pub(crate) struct Found<F> {
    pub(crate) segment: Segment<F>,
    pub(crate) state: State,
    pub(crate) damages: Vec<Quarantined>,
}

/// Damage that was found: the segment is kept as it is, and written to no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// The segment.
    pub path: PathBuf,
    /// The first byte in doubt.
    pub position: u64,
    /// What does not fit.
    pub reason: String,
    /// The first offset that is lost.
    pub first: Offset,
    /// The first offset after those; equal to `first` when no record is lost.
    pub end: Offset,
}

/// The names in a partition's directory.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) segments: Vec<Offset>,
    pub(crate) quarantined: Vec<Offset>,
    pub(crate) epochs: Vec<Epoch>,
}

impl Names {
    /// Reads them, in order. Names of others are passed over.
    pub(crate) fn list<D: Disk>(disk: &D, directory: &Path) -> Result<Self, Error> {
        let mut names = Self::default();
        for name in disk.list(directory).map_err(|error| Error::io(directory, "list", error))? {
            match FileName::parse(&name) {
                Some(FileName::Segment(base)) => names.segments.push(base),
                Some(FileName::Quarantined(base)) => names.quarantined.push(base),
                Some(FileName::Epoch(epoch)) => names.epochs.push(epoch),
                None => {}
            }
        }
        names.segments.sort_unstable();
        names.epochs.sort_unstable();
        Ok(names)
    }
}

struct Opened<F> {
    base: Offset,
    path: Arc<Path>,
    file: Arc<F>,
    length: u64,
    header: Result<(SegmentHeader, Salt), HeaderProblem>,
    /// Both copies are the same.
    header_is_whole: bool,
}

impl<F: DiskFile> Opened<F> {
    fn new<D: Disk<File = F>>(disk: &D, directory: &Path, base: Offset) -> Result<Self, Error> {
        let path: Arc<Path> = directory.join(FileName::Segment(base).to_string()).into();
        let file = disk.open(&path).map_err(|error| Error::io(&path, "open", error))?;
        let length = file.len().map_err(|error| Error::io(&path, "measure", error))?;
        let mut copies = [[0; SECTOR_BYTES]; 2];
        read_full(&file, copies.as_flattened_mut(), 0).map_err(|error| Error::io(&path, "read", error))?;
        let [first, second] = copies.each_ref().map(SegmentHeader::parse);
        let header_is_whole = first == second;
        let mine = |(header, salt): (SegmentHeader, Salt)| {
            if header.base_offset == base { Ok((header, salt)) } else { Err(HeaderProblem::Damaged) }
        };
        let header = first.or(second).and_then(mine);
        Ok(Self { base, path, file: Arc::new(file), length, header, header_is_whole })
    }
}

/// Looks at every segment of a directory, oldest first. `now` stands in for the time of what cannot be read.
pub(crate) fn inspect<D: Disk>(
    disk: &D,
    directory: &Path,
    names: &Names,
    now: UnixNanos,
) -> Result<Vec<Found<D::File>>, Error> {
    let mut opened = Vec::new();
    for &base in &names.segments {
        match Opened::new(disk, directory, base) {
            Ok(segment) => opened.push(segment),
            // A tool looks while retention removes.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    let mut found = Vec::new();
    for (at, segment) in opened.iter().enumerate() {
        let marker = if names.quarantined.contains(&segment.base) {
            Some(Marker::read(disk, directory, segment.base)?)
        } else {
            None
        };
        let next = opened.get(at + 1);
        let expect = match (&marker, next.map(|next| (next.base, next.header))) {
            (Some(Marker { end_offset: Some(end), .. }), _) => Expect::Until(*end),
            // Retention passes over quarantined segments, so what the next one says may be about one that is gone.
            (None, Some((_, Ok((header, _))))) => Expect::Until(header.previous_end.max(segment.base)),
            (_, Some((base, _))) => Expect::Before(base),
            (_, None) => Expect::Newest,
        };
        found.push(inspect_segment(segment, expect, marker, now)?);
    }
    Ok(found)
}

fn inspect_segment<F: DiskFile>(
    opened: &Opened<F>,
    expect: Expect,
    marker: Option<Marker>,
    now: UnixNanos,
) -> Result<Found<F>, Error> {
    let Opened { base, path, file, length, header, header_is_whole } = opened;
    let (header, salt) = match *header {
        Ok(header) => header,
        Err(problem) => return unreadable_segment(opened, problem, expect, now),
    };
    let file = SegmentFile { file: Arc::clone(file), path: Arc::clone(path), epoch: header.epoch, salt };
    let mut segment = Segment {
        base: *base,
        end: *base,
        newest_at: header.created_at,
        bytes: *length,
        used: SEGMENT_HEADER_BYTES,
        sealed: true,
        quarantined: None,
        path: Arc::clone(path),
        identity: Some((header.epoch, salt)),
        loaded: None,
    };
    let mut expect = expect;
    if marker.is_none()
        && let Some(trailer) = file.trailer(*length)?
        && expect.allows(trailer.end_offset)
    {
        // A crash in the middle of sealing may keep the end of the seal without its beginning. That is made good before
        // a next segment begins: if that one's header is lost, nothing else tells such bytes from a damaged commit.
        let is_whole = matches!(expect, Expect::Until(_)) || file.load_seal(*length)?.is_some();
        if *header_is_whole && is_whole {
            segment.end = trailer.end_offset;
            segment.newest_at = trailer.newest_at;
            segment.used = trailer.seal_position;
            return Ok(Found { segment, state: State::Sealed, damages: Vec::new() });
        }
        // Nothing is appended once a seal was begun, nor is one begun behind a commit that failed: what is missing is lost.
        expect = Expect::Until(trailer.end_offset);
    }
    let Walk { mut map, end, used, newest_at, tail } = walk(&file, *base, *length, expect)?;
    // Without a commit the header's copies may differ because the file was never written completely.
    if !header_is_whole && end > *base {
        let reason = "one copy of the segment's header is damaged";
        map.damages.insert(0, Damage { position: 0, reason, first: *base, end: *base });
    }
    segment.end = end;
    segment.used = used;
    segment.newest_at = segment.newest_at.max(newest_at);
    let state = match tail {
        _ if marker.is_some() => State::Damaged { remember: false },
        _ if !map.damages.is_empty() => State::Damaged { remember: true },
        Tail::Torn => State::Torn,
        Tail::Clean => State::Unsealed,
    };
    let mut damages: Vec<Quarantined> = map.damages.iter().map(|damage| damage.quarantined(path)).collect();
    if let Some(Marker { reason, .. }) = marker
        && damages.is_empty()
    {
        // It could not be read then and can be now; a person should know.
        let path = path.to_path_buf();
        damages.push(Quarantined { path, position: 0, reason, first: *base, end: *base });
    }
    if matches!(state, State::Damaged { .. }) {
        segment.quarantined = damages.first().map(|damage| damage.reason.clone());
    }
    segment.loaded = Some(Loaded { file, map });
    Ok(Found { segment, state, damages })
}

/// A segment whose header says nothing: without it, no commit can be told from any other bytes.
fn unreadable_segment<F: DiskFile>(
    opened: &Opened<F>,
    problem: HeaderProblem,
    expect: Expect,
    now: UnixNanos,
) -> Result<Found<F>, Error> {
    let Opened { base, path, file, length, .. } = opened;
    // Commits follow only once the header is durable, so a file without a byte behind the header never held one.
    let blank = expect == Expect::Newest
        && problem == HeaderProblem::Damaged
        && is_blank(&**file).map_err(|error| Error::io(path, "read", error))?;
    let most = base.plus(length / TABLE_ENTRY_BYTES as u64);
    let end = match expect {
        Expect::Newest => most,
        Expect::Until(end) => end,
        Expect::Before(next) => most.min(next),
    };
    let reason = match problem {
        HeaderProblem::Damaged => "both copies of the segment's header are damaged".to_owned(),
        HeaderProblem::UnknownVersion(version) => format!("segment version {version} is not known"),
    };
    let segment = Segment {
        base: *base,
        end: if blank { *base } else { end },
        newest_at: now,
        bytes: *length,
        used: *length,
        sealed: true,
        quarantined: (!blank).then(|| reason.clone()),
        path: Arc::clone(path),
        identity: None,
        loaded: None,
    };
    let damage = Quarantined { path: path.to_path_buf(), position: 0, reason, first: *base, end };
    Ok(if blank {
        Found { segment, state: State::Incomplete, damages: Vec::new() }
    } else {
        // Another version may read it another day; what it says about it then is not to be forestalled.
        let remember = problem == HeaderProblem::Damaged;
        Found { segment, state: State::Damaged { remember }, damages: vec![damage] }
    })
}

/// Whether nothing but zeros stands behind the header.
fn is_blank(file: &impl DiskFile) -> io::Result<bool> {
    let mut buffer = vec![0; REST_CHUNK_BYTES];
    let mut position = SEGMENT_HEADER_BYTES;
    loop {
        let filled = read_full(file, &mut buffer, position)?;
        if !is_zero(&buffer[..filled]) {
            return Ok(false);
        }
        if filled < buffer.len() {
            return Ok(true);
        }
        position += filled as u64;
    }
}

impl Damage {
    pub(crate) fn quarantined(&self, path: &Path) -> Quarantined {
        let Self { position, reason, first, end } = *self;
        Quarantined { path: path.to_path_buf(), position, reason: reason.to_owned(), first, end }
    }
}

/// The file that says that a segment is quarantined.
struct Marker {
    /// Where the segment's records ended when it was written.
    end_offset: Option<Offset>,
    reason: String,
}

/// A marker is a few lines; more than this is not looked at.
const MARKER_BYTES_MAX: usize = 4096;

impl Marker {
    fn read<D: Disk>(disk: &D, directory: &Path, base: Offset) -> Result<Self, Error> {
        let path = directory.join(FileName::Quarantined(base).to_string());
        let file = disk.open(&path).map_err(|error| Error::io(&path, "open", error))?;
        let mut bytes = vec![0; MARKER_BYTES_MAX];
        let filled = read_full(&file, &mut bytes, 0).map_err(|error| Error::io(&path, "read", error))?;
        let text = String::from_utf8_lossy(&bytes[..filled]);
        let (first, rest) = text.split_once('\n').unwrap_or_default();
        let end_offset = first.strip_prefix("end_offset ").and_then(|number| number.parse().ok());
        let reason = rest.lines().next().unwrap_or("quarantined before").to_owned();
        Ok(Self { end_offset: end_offset.map(Offset), reason })
    }
}

/// Writes the file that says that a segment is quarantined, unless there is one.
pub(crate) fn write_marker<D: Disk>(
    disk: &D,
    directory: &Path,
    base: Offset,
    end_offset: Offset,
    damages: &[Quarantined],
) -> io::Result<()> {
    let path = directory.join(FileName::Quarantined(base).to_string());
    let file = match disk.create_new(&path, 0) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut text = format!("end_offset {end_offset}\n");
    for Quarantined { position, reason, first, end, .. } in damages {
        text.push_str(&format!("byte {position}: {reason}; lost offsets from {first} to before {end}\n"));
    }
    let written = file.write_at(&[io::IoSlice::new(text.as_bytes())], 0).and_then(|()| file.sync_data());
    if let Err(error) = written {
        // A marker that says nothing must not pass for one the next time.
        disk.remove(&path)?;
        return Err(error);
    }
    disk.sync_dir(directory)
}
