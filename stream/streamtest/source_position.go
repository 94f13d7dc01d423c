package streamtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/levada-io/levada/stream"
)

func checkKeysGrow(s SourceUnderTest) error {
	all, err := readSource(s, nil, s.Count)
	if err != nil {
		return err
	}
	last := []byte{} // no key may be empty: it would be the position before the first record
	for i, r := range all {
		if bytes.Compare(r.key, last) <= 0 {
			return fmt.Errorf("%w: record %d has key %q, after key %q", stream.ErrOrder, i+1, r.key, last)
		}
		last = r.key
	}
	return nil
}

func checkSameTwice(s SourceUnderTest) error {
	first, err := readSource(s, nil, s.Count)
	if err != nil {
		return err
	}
	second, err := readSource(s, nil, s.Count)
	if err != nil {
		return err
	}
	if err := compareRecords(second, first); err != nil {
		return fmt.Errorf("read a second time: %w", err)
	}
	return nil
}

func checkReopenAfterEach(s SourceUnderTest) error {
	all, err := readSource(s, nil, s.Count)
	if err != nil {
		return err
	}
	step := max(1, len(all)/100) // long sources at a hundred places, and always at both ends
	for i := 0; i < len(all); i++ {
		if i%step != 0 && i < len(all)-2 {
			continue
		}
		rest, err := readSource(s, all[i].key, len(all)-i-1)
		if err != nil {
			return err
		}
		if err := compareRecords(rest, all[i+1:]); err != nil {
			return fmt.Errorf("opened after record %d (key %q): %w", i+1, all[i].key, err)
		}
	}
	return nil
}

// readInPieces opens the source again and again, each time after the last key, and reads steps[i] records of each opening, then the rest.
func readInPieces(s SourceUnderTest, want []sourceRecord, steps []int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 6*sourcePatience)
	defer cancel()
	var got []sourceRecord
	var after []byte
	for _, n := range steps {
		n = min(n, len(want)-len(got))
		c, err := openSource(ctx, s, after)
		if err != nil {
			return err
		}
		piece, err := readCursor(ctx, c, n)
		if e := c.Close(); err == nil && e != nil {
			err = fmt.Errorf("Close: %w", e)
		}
		if err != nil {
			return fmt.Errorf("opened after key %q: %w", after, err)
		}
		got = append(got, piece...)
		if len(got) > 0 {
			after = got[len(got)-1].key
		}
	}
	rest, err := readSource(s, after, len(want)-len(got))
	if err != nil {
		return err
	}
	if err := compareRecords(append(got, rest...), want); err != nil {
		return fmt.Errorf("read in pieces of %v: %w", steps, err)
	}
	return nil
}

func checkBookmarks(s SourceUnderTest) error {
	all, err := readSource(s, nil, s.Count)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 6*sourcePatience)
	defer cancel()
	c, err := openSource(ctx, s, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	b, ok := c.(stream.ProgressKeyer)
	if !ok {
		return nil
	}
	for i, r := range all {
		if _, err := nextKey(ctx, c); err != nil {
			return fmt.Errorf("Next after %d records: %w", i, err)
		}
		at := bytes.Clone(b.ProgressKey())
		if len(at) == 0 {
			continue // knows nothing yet
		}
		if err := bookmarkBetween(at, i, r, all); err != nil {
			return err
		}
		if i%max(1, len(all)/20) != 0 {
			continue
		}
		rest, err := readSource(s, at, len(all)-i-1)
		if err != nil {
			return err
		}
		if err := compareRecords(rest, all[i+1:]); err != nil {
			return fmt.Errorf("opened after the bookmark %q, given after record %d: %w", at, i+1, err)
		}
	}
	return nil
}

// bookmarkBetween checks that a bookmark given after record i is not before that record, and before the next one.
func bookmarkBetween(at []byte, i int, r sourceRecord, all []sourceRecord) error {
	if bytes.Compare(at, r.key) < 0 {
		return fmt.Errorf("the bookmark after record %d is %q, before the record's own key %q", i+1, at, r.key)
	}
	if i+1 < len(all) && bytes.Compare(at, all[i+1].key) >= 0 {
		return fmt.Errorf("the bookmark after record %d is %q, and record %d with key %q is still to come", i+1, at, i+2, all[i+1].key)
	}
	return nil
}

func checkEndIsFinal(s SourceUnderTest) error {
	if s.Waits {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 6*sourcePatience)
	defer cancel()
	c, err := openSource(ctx, s, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := readCursor(ctx, c, -1); err != nil {
		return err
	}
	for range 3 {
		if key, err := nextKey(ctx, c); !errors.Is(err, io.EOF) {
			return fmt.Errorf("Next after the end returned key %q and error %v, expected io.EOF again", key, err)
		}
	}
	return nil
}

func checkStableNames(s SourceUnderTest) error {
	ctx, cancel := context.WithTimeout(context.Background(), sourcePatience)
	defer cancel()
	var names [2]string
	for i := range names {
		if i > 0 { // reading changes nothing
			if _, err := readSource(s, nil, s.Count); err != nil {
				return err
			}
		}
		if g, ok := s.Source.(stream.Generation); ok {
			name, err := g.Generation(ctx, s.Query)
			if err != nil {
				return fmt.Errorf("Generation: %w", err)
			}
			names[i] += fmt.Sprintf("generation %q ", name)
		}
		if sc, ok := s.Source.(stream.Schema); ok {
			names[i] += fmt.Sprintf("schema %q", sc.Schema(s.Query))
		}
	}
	if names[0] != names[1] {
		return fmt.Errorf("the source was %s, and after it had been read it is %s: positions would be refused", names[0], names[1])
	}
	sizer, ok := s.Source.(stream.Sizer)
	if !ok {
		return nil
	}
	size, err := sizer.Size(ctx, s.Query)
	if err != nil {
		return fmt.Errorf("Size: %w", err)
	}
	if size != 0 && size != uint64(s.Count) {
		return fmt.Errorf("Size is %d, and there are %d records; a source that does not know says 0", size, s.Count)
	}
	return nil
}
