package buffer

import (
	"errors"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/identity"
	"github.com/levada-io/levada/internal/flow"
)

func sampleState() savedState {
	seen := identity.New(time.Minute, 10)
	seen.Admit(&flow.Block{Lane: "in/0@x", Lo: 1, Hi: 9, Floor: 4}, time.Time{})
	return savedState{
		floor: 7, last: 12, base: 1000, top: 1012, seen: seen.Marshal(),
		progress: map[uint64]progress{9: {stored: 5, all: true}, 10: {stored: 6, spans: []flow.Span{{Lo: 1, Hi: 2}, {Lo: 4, Hi: 4}}}},
	}
}

// TestStateOfEarlierVersionIsRead: the file was written by the version before messages could be consumed. A state without any is still written in the form that it reads,
// so that a downgrade is possible where no vertex keeps messages.
func TestStateOfEarlierVersionIsRead(t *testing.T) {
	data, err := os.ReadFile("testdata/state-v3.bin")
	if err != nil {
		t.Fatal(err)
	}
	want := sampleState()
	got, err := unmarshalState(data)
	if err != nil || !reflect.DeepEqual(*got, want) || got.passed() != 7 {
		t.Errorf("%+v, %v", got, err)
	}
	if string(want.marshal()) != string(data) {
		t.Errorf("the same state is other bytes now: %x", want.marshal())
	}
}

// TestStateSaysHowFarMessagesAreConsumed, to writers elsewhere; the floor stays where it is.
func TestStateSaysHowFarMessagesAreConsumed(t *testing.T) {
	s := sampleState()
	s.consumed = 11
	data := s.marshal()
	got, err := unmarshalState(data)
	if err != nil || !reflect.DeepEqual(*got, s) || got.passed() != 11 {
		t.Errorf("%+v, %v", got, err)
	}
	data[len(stateMagic)] = stateConsumed + 1
	if _, err := unmarshalState(data); !errors.Is(err, errStateVersion) {
		t.Errorf("a later form: %v", err)
	}
	for n := range data {
		data := s.marshal()[:n]
		if _, err := unmarshalState(data); err == nil && n > len(stateMagic) {
			t.Errorf("%d of %d bytes were read", n, len(s.marshal()))
		}
	}
}
