package engine

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestWhoIsWaitedForIsSaidOnceWithTheReason: nothing for what is there soon, one line for what is not, one when it has come.
func TestWhoIsWaitedForIsSaidOnceWithTheReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, nil))
		Waiting(log, "function", nil)(nil)
		over := Waiting(log, "function", func() string { return "no server info yet" }, "vertex", "cat")
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "waiting for function") || !strings.Contains(got, "no server info yet") || !strings.Contains(got, "vertex=cat") {
			t.Errorf("%s", got)
		}
		out.Reset()
		over(nil)
		if got := out.String(); !strings.Contains(got, "no longer waiting for function") || !strings.Contains(got, "took=1m0s") {
			t.Errorf("%s", got)
		}
		out.Reset()
		over = Waiting(log, "broker", nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		out.Reset()
		over(errors.New("it was not there"))
		if out.Len() != 0 {
			t.Errorf("after an error, which is printed elsewhere: %s", out.String())
		}
	})
}
