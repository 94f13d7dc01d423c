package streamtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/levada-io/levada/stream"
)

// SourceUnderTest is a source, and what it holds.
type SourceUnderTest struct {
	Source stream.Source
	// Query says what to read; its After is not looked at. Records are the same for it as long as the test runs.
	Query stream.Query
	// Count is how many records there are. At least 3, so that there is something to go on from.
	Count int
	// Waits says that Next waits for more after the last record, as in a live tail. Else it returns io.EOF.
	Waits bool
}

// RunSource checks that a source keeps the contract of [stream.Source] and [stream.Cursor], on which it depends that a stream that
// was cut goes on without loss. open is called once for each subtest, and cleans up with t.Cleanup; its source may be one
// that the subtests share. Each of them must hold the same number of records.
func RunSource(t *testing.T, open func(t *testing.T) SourceUnderTest) {
	t.Helper()
	for _, check := range sourceChecks {
		t.Run(check.name, func(t *testing.T) {
			s := open(t)
			if s.Count < 3 {
				t.Fatalf("SourceUnderTest.Count is %d: a source that is tested has at least 3 records", s.Count)
			}
			if err := check.run(s); err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Run("RandomReopens", func(t *testing.T) {
		s := open(t)
		all, err := readSource(s, nil, s.Count)
		if err != nil {
			t.Fatal(err)
		}
		rapid.Check(t, func(t *rapid.T) {
			steps := rapid.SliceOfN(rapid.IntRange(0, len(all)), 1, 8).Draw(t, "records read by each opening")
			if err := readInPieces(s, all, steps); err != nil {
				t.Fatal(err)
			}
		})
	})
}

// sourceChecks are functions of the source, not of a test, so that the suite can be tested on bad sources.
var sourceChecks = []struct {
	name string
	run  func(SourceUnderTest) error
}{
	{"KeysGrow", checkKeysGrow},
	{"SameTwice", checkSameTwice},
	{"ReopenAfterEachKey", checkReopenAfterEach},
	{"Bookmarks", checkBookmarks},
	{"EndIsFinal", checkEndIsFinal},
	{"ValueAppends", checkValueAppends},
	{"KeyStaysUntilNext", checkKeyStays},
	{"ValueNeedNotBeRead", checkValueUnread},
	{"CancelledContextIsNoEnd", checkCancelledIsNoEnd},
	{"CancelWhileWaiting", checkCancelWhileWaiting},
	{"CloseAnywhere", checkCloseAnywhere},
	{"Concurrent", checkConcurrent},
	{"StableNames", checkStableNames},
	{"NothingLeaks", checkNoLeak},
}

// sourcePatience is how long a source may take for anything that should be prompt, on a busy machine.
const sourcePatience = 10 * time.Second

// sourceRecord is what a source gave for one record.
type sourceRecord struct {
	key, value []byte
	bad        string // its Value returned an error, or panicked
}

func (r sourceRecord) equal(o sourceRecord) bool {
	return bytes.Equal(r.key, o.key) && bytes.Equal(r.value, o.value) && r.bad == o.bad
}

func openSource(ctx context.Context, s SourceUnderTest, after []byte) (stream.Cursor, error) {
	q := s.Query
	q.After = slices.Clone(after)
	c, err := s.Source.Open(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("Open after key %q: %w", after, err)
	}
	if c == nil {
		return nil, fmt.Errorf("Open after key %q returned neither a cursor nor an error", after)
	}
	return c, nil
}

// nextKey passes over calls that only moved the bookmark.
func nextKey(ctx context.Context, c stream.Cursor) ([]byte, error) {
	_, hasBookmark := c.(stream.ProgressKeyer)
	for {
		key, err := c.Next(ctx)
		if err != nil || key != nil || !hasBookmark {
			return key, err
		}
	}
}

// valueOf turns what a record costs, an error or a panic, into text that can be compared.
func valueOf(c stream.Cursor, dst []byte) (value []byte, bad string) {
	defer func() {
		if p := recover(); p != nil {
			value, bad = nil, fmt.Sprint("panic: ", p)
		}
	}()
	value, err := c.Value(dst)
	if err != nil {
		return nil, err.Error()
	}
	return value, ""
}

// readCursor reads n records, or to the end if n is negative.
func readCursor(ctx context.Context, c stream.Cursor, n int) ([]sourceRecord, error) {
	var all []sourceRecord
	for n < 0 || len(all) < n {
		key, err := nextKey(ctx, c)
		if err != nil {
			if errors.Is(err, io.EOF) && n < 0 {
				return all, nil
			}
			return all, fmt.Errorf("Next after %d records: %w", len(all), err)
		}
		r := sourceRecord{key: bytes.Clone(key)}
		value, bad := valueOf(c, nil)
		r.value, r.bad = bytes.Clone(value), bad
		all = append(all, r)
	}
	return all, nil
}

// readSource opens the source and reads n records, and the end too unless the source waits there.
func readSource(s SourceUnderTest, after []byte, n int) (all []sourceRecord, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 6*sourcePatience)
	defer cancel()
	c, err := openSource(ctx, s, after)
	if err != nil {
		return nil, err
	}
	defer func() {
		if e := c.Close(); e != nil && err == nil {
			err = fmt.Errorf("Close: %w", e)
		}
	}()
	if s.Waits {
		all, err = readCursor(ctx, c, n)
	} else {
		all, err = readCursor(ctx, c, -1)
	}
	if err != nil {
		return nil, fmt.Errorf("opened after key %q, expecting %d records: %w", after, n, err)
	}
	if len(all) != n {
		return nil, fmt.Errorf("opened after key %q: there were %d records, expected %d", after, len(all), n)
	}
	return all, nil
}

func compareRecords(got, want []sourceRecord) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d records, expected %d", len(got), len(want))
	}
	for i := range got {
		if !got[i].equal(want[i]) {
			return fmt.Errorf("record %d of %d is key %q, value %.60q, error %q; expected key %q, value %.60q, error %q",
				i+1, len(got), got[i].key, got[i].value, got[i].bad, want[i].key, want[i].value, want[i].bad)
		}
	}
	return nil
}
