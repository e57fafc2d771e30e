//! The tag index of one segment: terms to roaring bitmaps of rows
