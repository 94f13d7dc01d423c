package client

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// TestAckThatWaitsEndsAlone: an acknowledgement whose context ends while another one has the stream does not end the stream.
func TestAckThatWaitsEndsAlone(t *testing.T) {
	s := &Source{acking: make(chan struct{}, 1)}
	s.acking <- struct{}{}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if err := s.Ack(ctx, []Offset{{bytes: []byte("1")}}); !errors.Is(err, why) {
		t.Errorf("the error is %v, want the cause of the end", err)
	}
	if s.CannotAck() {
		t.Error("the stream was ended for the acknowledgement that has it")
	}
}

// TestServerInfoThatCannotBeRead: it is not taken for one that is not there yet, which would be waited for silently.
func TestServerInfoThatCannotBeRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mapper-server-info")
	if info, err := readServerInfo(file); info != nil || err != nil {
		t.Errorf("a file that is not there yet: %v, %v", info, err)
	}
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := readServerInfo(file); err == nil {
		t.Error("a file that cannot be read is no error")
	}
}

// TestNackDeliveries: whatever a function sends, the number of deliveries is not negative.
func TestNackDeliveries(t *testing.T) {
	for _, n := range []uint64{0, 3, math.MaxInt32, math.MaxInt32 + 1, math.MaxUint64} {
		var o Outcome
		if err := o.decodeNack(protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), n)); err != nil {
			t.Fatal(err)
		}
		if want := int(min(n, math.MaxInt32)); o.MaxDeliveries != want {
			t.Errorf("%d deliveries are read as %d, want %d", n, o.MaxDeliveries, want)
		}
	}
}
