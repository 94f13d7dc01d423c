package process

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function/client"
	"github.com/levada-io/levada/internal/dataplane/function/wire"
)

// TestTheReasonOfAKillIsTheOneOfTheCall: a dead letter that names our signal, and not what the function did, sends the user to the wrong place.
func TestTheReasonOfAKillIsTheOneOfTheCall(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		err    error
		label  string
		reason deadletter.Reason
		says   string
	}{
		{"a violation of the protocol", fmt.Errorf("call: %w", &client.ProtocolError{}), LabelProtocol, deadletter.Protocol, ""},
		{"the end of the stream", io.EOF, LabelProtocol, deadletter.Protocol, "status OK"},
		{"no error", nil, LabelProtocol, deadletter.Protocol, "ended while messages were unanswered"},
		{"a status of the function", &wire.Status{Code: codes.Internal, Message: "no database"}, LabelError, deadletter.Error, "no database"},
		{"a lost connection", &wire.Status{Code: codes.Unavailable, Message: "reset"}, LabelProtocol, deadletter.Protocol, "broke"},
		{"a broken stream", errors.New("short write"), LabelProtocol, deadletter.Protocol, "short write"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := KillFor(c.err)
			if k.Label != c.label || k.reason() != c.reason || !strings.Contains(k.Why, c.says) {
				t.Errorf("label %q, reason %q, %q; want %q, %q, %q", k.Label, k.reason(), k.Why, c.label, c.reason, c.says)
			}
		})
	}
	for label, want := range map[string]deadletter.Reason{LabelHang: deadletter.Hang, LabelPanic: deadletter.Panic, LabelError: deadletter.Error, LabelProtocol: deadletter.Protocol} {
		if got := (Kill{Label: label}).reason(); got != want {
			t.Errorf("%s becomes %q, want %q", label, got, want)
		}
	}
}

// TestTheFirstReasonOfAKillCounts: what follows a kill, such as a broken stream, is its consequence.
func TestTheFirstReasonOfAKillCounts(t *testing.T) {
	t.Parallel()
	var i Instance
	i.note(Kill{LabelHang, "no answer within 1s"})
	i.note(Kill{LabelProtocol, "its stream broke"})
	if i.Label() != LabelHang || i.Ending() != "killed by levada: no answer within 1s" {
		t.Errorf("label %q, ending %q", i.Label(), i.Ending())
	}
}

// TestTimeInUserCodeIsThatOfTheOldestAnnouncedCall: a call that ended must not be taken for one that hangs, and a slow one is not younger because others come.
func TestTimeInUserCodeIsThatOfTheOldestAnnouncedCall(t *testing.T) {
	t.Parallel()
	i := &Instance{dir: t.TempDir()}
	path := filepath.Join(i.dir, client.AnnounceFile)
	if err := client.CreateAnnounceFile(path); err != nil {
		t.Fatal(err)
	}
	announce := func(calls ...uint64) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for slot := range 3 {
			var b [8]byte
			if slot < len(calls) {
				binary.LittleEndian.PutUint64(b[:], calls[slot])
			}
			if _, err := f.WriteAt(b[:], int64(slot)*8); err != nil {
				t.Fatal(err)
			}
		}
	}
	c := i.InCode()
	start := time.Now()
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	for n, step := range []struct {
		calls []uint64
		now   int
		want  time.Time
	}{
		{nil, 0, time.Time{}},
		{[]uint64{1}, 1, at(1)},
		{[]uint64{1, 2}, 2, at(1)},
		{[]uint64{2}, 3, at(2)},    // the first has returned
		{[]uint64{2, 1}, 4, at(2)}, // it is called again, and is younger now
		{[]uint64{1}, 5, at(4)},
		{nil, 6, time.Time{}},
	} {
		announce(step.calls...)
		if got := c.Oldest(at(step.now)); !got.Equal(step.want) {
			t.Errorf("step %d: the oldest call is from %v, want %v", n, got, step.want)
		}
	}
	if !NotAnnounced().Oldest(start).IsZero() {
		t.Error("a function that announces nothing has a call in user code")
	}
}
