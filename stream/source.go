package stream

import "context"

// Source is where a producer's records come from. Open may be called concurrently.
type Source interface {
	// Open returns a cursor that stands strictly after q.After. When the source cannot go on from there, it returns
	// a *PositionGoneError or an error that wraps ErrGeneration or ErrQueryChanged. All other errors mean "try again later",
	// unless they are marked with Halt. Open should be quick: what takes long belongs into the first Next, during which the reader is
	// shown that the producer lives.
	Open(ctx context.Context, q Query) (Cursor, error)
}

// Query says what to read.
type Query struct {
	// Stream is the name that the source was registered by.
	Stream string
	// Params come from the job. Empty if it has none.
	Params []byte
	// After is the key of the last record that the reader has, or that the source passed over; nil at the start.
	After []byte
	// Job names the reader's job, for sources that keep something per job, as a snapshot; else it has no meaning.
	Job string
}

// Cursor moves over the records of a source. It is used by one goroutine at a time.
type Cursor interface {
	// Next moves to the next record and returns its key, which the cursor may overwrite at the next call. Keys grow
	// strictly, compared byte by byte; the order must be the same in each replica and in each life of the source.
	// Keys are not empty, and have at most 16 KiB. Next may wait for a record to appear, and must return when ctx ends. It returns
	// io.EOF when there will be no more. A cursor that is a Bookmark may return a nil key and no error after it has passed over
	// records: then it is asked for the bookmark, and called again.
	Next(ctx context.Context) (key []byte, err error)
	// Value appends the value of the record that Next moved to. A panic here costs this record only: it becomes a bad
	// record, which workers put into quarantine, and so does an error marked with Skip. Other errors end the stream, and
	// the reader tries again later.
	Value(dst []byte) ([]byte, error)
	// Close frees what the cursor holds. It is called once.
	Close() error
}

// A Source or Cursor may have these methods too.
type (
	// Generation is a source that can tell its lives apart: the name changes when the records after a position may be
	// others than before, as after a restore from a backup. Positions of another generation are refused.
	Generation interface {
		Generation(ctx context.Context, q Query) (string, error)
	}
	// Schema is a source whose order or content depends on more than the query's parameters, such as the text of an
	// SQL statement. Positions that were given out under another schema are refused.
	Schema interface {
		Schema(q Query) string
	}
	// Sizer is a source that knows how many records the whole stream has, from its start to its end. 0 if not.
	Sizer interface {
		Size(ctx context.Context, q Query) (uint64, error)
	}
	// Bookmark is a cursor that can tell how far it has looked: a key such that it will return only greater ones. It moves
	// readers on where the source passes over many records that do not belong to the stream. It is called when Next has
	// returned neither a key nor an error.
	ProgressKeyer interface {
		ProgressKey() []byte
	}
)
