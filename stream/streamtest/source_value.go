package streamtest

import (
	"bytes"
	"context"
	"fmt"
)

func checkValueAppends(s SourceUnderTest) error {
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
	prefix := []byte("what the caller has already")
	for i, want := range all {
		if _, err := nextKey(ctx, c); err != nil {
			return fmt.Errorf("Next after %d records: %w", i, err)
		}
		room := 0
		if i%2 == 0 {
			room = len(want.value) + 16
		}
		dst := append(make([]byte, 0, len(prefix)+room), prefix...)
		value, bad := valueOf(c, dst)
		if !bytes.Equal(dst, prefix) {
			return fmt.Errorf("Value of record %d overwrote what was in dst", i+1)
		}
		if bad != want.bad {
			return fmt.Errorf("Value of record %d failed with %q, expected %q", i+1, bad, want.bad)
		}
		if rest, ok := bytes.CutPrefix(value, prefix); bad == "" && (!ok || !bytes.Equal(rest, want.value)) {
			return fmt.Errorf("Value of record %d returned %.80q, expected what was in dst and then %.60q", i+1, value, want.value)
		}
	}
	return nil
}

// checkKeyStays also checks that values survive the next call: they were appended to memory of the caller's.
func checkKeyStays(s SourceUnderTest) error {
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
	var last, lastCopy []byte
	for i := range s.Count {
		key, err := nextKey(ctx, c)
		if err != nil {
			return fmt.Errorf("Next after %d records: %w", i, err)
		}
		before := bytes.Clone(key)
		value, _ := valueOf(c, make([]byte, 0, 64))
		if !bytes.Equal(last, lastCopy) {
			return fmt.Errorf("the value of record %d, which was appended to memory of the caller's, was overwritten by the calls for the next", i)
		}
		if !bytes.Equal(key, before) {
			return fmt.Errorf("Value of record %d changed its key from %q to %q", i+1, before, key)
		}
		last, lastCopy = value, bytes.Clone(value)
		// The caller owns what was appended, and may write over it; what the cursor gives next must not depend on it.
		if i%3 == 2 {
			clear(value)
			last, lastCopy = nil, nil
		}
	}
	again, err := readSource(s, nil, s.Count)
	if err != nil {
		return err
	}
	if err := compareRecords(again, all); err != nil {
		return fmt.Errorf("after the caller had written over values that were appended to its memory: %w", err)
	}
	return nil
}

func checkValueUnread(s SourceUnderTest) error {
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
	for i, want := range all {
		key, err := nextKey(ctx, c)
		if err != nil {
			return fmt.Errorf("Next after %d records: %w", i, err)
		}
		got := sourceRecord{key: bytes.Clone(key), value: want.value, bad: want.bad}
		if i%2 == 0 {
			value, bad := valueOf(c, nil)
			got.value, got.bad = value, bad
		}
		if err := compareRecords([]sourceRecord{got}, all[i:i+1]); err != nil {
			return fmt.Errorf("reading the value of every other record only: %w", err)
		}
	}
	return nil
}
