package streamtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"go.uber.org/goleak"
)

// within calls f and waits for it for as long as a prompt answer may take.
func within(what string, f func()) error {
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	timer := time.NewTimer(sourcePatience)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-timer.C:
		return fmt.Errorf("%s did not return within %v", what, sourcePatience)
	}
}

func checkCancelledIsNoEnd(s SourceUnderTest) error {
	ctx, cancel := context.WithTimeout(context.Background(), 6*sourcePatience)
	defer cancel()
	c, err := openSource(ctx, s, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := readCursor(ctx, c, 1); err != nil {
		return err
	}
	over, cancelNow := context.WithCancel(ctx)
	cancelNow()
	var n int
	var last error
	err = within("Next with a cancelled context", func() {
		for n, last = 1, nil; last == nil && n <= s.Count; n++ { // some sources go on with what they have in memory
			_, last = nextKey(over, c)
		}
	})
	if err == nil && errors.Is(last, io.EOF) && n <= s.Count {
		return fmt.Errorf("Next with a cancelled context returned io.EOF before the last of %d records: the stream would be taken for complete", s.Count)
	}
	if err != nil {
		return err
	}
	return within("Open with a cancelled context", func() {
		if c, err := openSource(over, s, nil); err == nil {
			c.Close()
		}
	})
}

func checkCancelWhileWaiting(s SourceUnderTest) error {
	if !s.Waits {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 6*sourcePatience)
	defer cancel()
	c, err := openSource(ctx, s, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := readCursor(ctx, c, s.Count); err != nil {
		return err
	}
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	timer := time.AfterFunc(100*time.Millisecond, stop) // Next should be waiting by then; it must return either way
	defer timer.Stop()
	var key []byte
	var last error
	err = within("Next, whose context was cancelled while it waited,", func() { key, last = nextKey(waiting, c) })
	switch {
	case err != nil:
		return err
	case last == nil:
		return fmt.Errorf("there was a record with key %q beyond the %d that SourceUnderTest.Count names", key, s.Count)
	case errors.Is(last, io.EOF):
		return fmt.Errorf("Next returned io.EOF although the source waits for more: %w", last)
	case waiting.Err() == nil:
		return fmt.Errorf("Next returned before its context was cancelled: %w", last)
	}
	return nil
}

func checkCloseAnywhere(s SourceUnderTest) error {
	ctx, cancel := context.WithTimeout(context.Background(), 6*sourcePatience)
	defer cancel()
	for n := range min(s.Count, 20) {
		c, err := openSource(ctx, s, nil)
		if err != nil {
			return err
		}
		if _, err := readCursor(ctx, c, n); err != nil {
			c.Close()
			return err
		}
		if err := c.Close(); err != nil {
			return fmt.Errorf("Close after %d records: %w", n, err)
		}
	}
	return nil
}

func checkConcurrent(s SourceUnderTest) error {
	all, err := readSource(s, nil, s.Count)
	if err != nil {
		return err
	}
	const readers = 4
	errs := make([]error, readers)
	var wg sync.WaitGroup
	for i := range readers {
		wg.Go(func() {
			if i%2 == 0 {
				errs[i] = readInPieces(s, all, []int{i, 1, len(all) / 2})
				return
			}
			got, err := readSource(s, nil, s.Count)
			if err == nil {
				err = compareRecords(got, all)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%d readers at once: %w", readers, err)
	}
	return nil
}

func checkNoLeak(s SourceUnderTest) error {
	if _, err := readSource(s, nil, s.Count); err != nil { // pools fill, lazily started things start
		return err
	}
	before := goleak.IgnoreCurrent()
	for i := range 10 {
		err := func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 6*sourcePatience)
			defer cancel()
			c, err := openSource(ctx, s, nil)
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = readCursor(ctx, c, i%s.Count)
			return err
		}()
		if err != nil {
			return err
		}
	}
	if err := goleak.Find(before); err != nil {
		return fmt.Errorf("cursors that are closed leave goroutines: %w", err)
	}
	return nil
}
