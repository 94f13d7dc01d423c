package deadletter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/levada-io/levada/internal/flow"
)

// list is a Storage in memory, which keeps letters in the order in which they came.
type list struct{ letters []Stored }

func (*list) Name() string { return "letters" }

func (l *list) at(name string) int {
	return slices.IndexFunc(l.letters, func(s Stored) bool { return s.Name == name })
}

func (l *list) Add(_ context.Context, s Stored) error {
	if l.at(s.Name) < 0 {
		l.letters = append(l.letters, s)
	}
	return nil
}

func (l *list) Get(_ context.Context, name string) (Stored, error) {
	if i := l.at(name); i >= 0 {
		return l.letters[i], nil
	}
	return Stored{}, ErrNotFound
}

func (l *list) Remove(_ context.Context, name string) error {
	i := l.at(name)
	if i < 0 {
		return ErrNotFound
	}
	l.letters = slices.Delete(l.letters, i, i+1)
	return nil
}

func (l *list) Page(_ context.Context, vertex string, after uint64, limit int) (page []Stored, next uint64, err error) {
	for i := int(after); i < len(l.letters); i++ {
		if len(page) == limit {
			return page, uint64(i), nil
		}
		if vertex == "" || strings.HasPrefix(l.letters[i].Name, vertex+".") {
			page = append(page, Stored{Name: l.letters[i].Name, Head: l.letters[i].Head})
		}
	}
	return page, 0, nil
}

func message(id string) *flow.Message {
	return &flow.Message{
		ID: id, Pos: 7, Value: []byte("v\x00\xff"), Keys: []string{"k", ""}, EventTime: 5, Ingested: 6, Headers: flow.AppendHeader(nil, "name", "value"),
		Metadata: []byte{1, 2}, Tags: []string{"of its result"},
	}
}

// TestLetterComesBackAsItWas: message and evidence. Tags are of results, and are decided again when the message is replayed.
func TestLetterComesBackAsItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(&list{}, "p", nil)
		want := Failure{Reason: Crash, Error: "it died", Stack: "main.go:1", ExitCode: 2, Signal: "killed", Attempts: 3, ConfirmedAlone: 1, Output: "out of\nmemory"}
		if err := s.Put(t.Context(), "parse", message("in/0/7"), &want); err != nil {
			t.Fatal(err)
		}
		page, next, err := s.Page(t.Context(), "", 0, 10)
		if err != nil || next != 0 || len(page) != 1 {
			t.Fatalf("%v, %d, %v", page, next, err)
		}
		l, err := s.Get(t.Context(), page[0].Name)
		if err != nil {
			t.Fatal(err)
		}
		m := *message("in/0/7")
		m.Tags = nil
		if !reflect.DeepEqual(l.Message, m) || l.Failure != want || l.Pipeline != "p" || l.Vertex != "parse" || l.ID != "in/0/7" || !l.Buried.Equal(time.Now()) {
			t.Errorf("%+v", l)
		}
		if len(page[0].Message.Value) != 0 || page[0].Failure != want {
			t.Errorf("a page: %+v", page[0])
		}
	})
}

// TestNameIsOfVertexAndMessage: putting a message again changes nothing, whatever became of it since, and neither vertices nor ids get in each other's way.
func TestNameIsOfVertexAndMessage(t *testing.T) {
	storage := &list{}
	s := New(storage, "p", nil)
	for _, put := range []struct{ vertex, id, why string }{
		{"a", "in/1", "first"}, {"a", "in/1", "second"}, {"b", "in/1", "first"}, {"a", "in/2", "first"}, {"a.b", "in/1", "first"}, {"a", strings.Repeat("long", 1000), "first"}, {"a", "in/1 ü\n*>", "first"},
	} {
		if err := s.Of(put.vertex).Put(t.Context(), message(put.id), &Failure{Reason: Error, Error: put.why}); err != nil {
			t.Fatal(err)
		}
	}
	if len(storage.letters) != 6 {
		t.Errorf("%d letters", len(storage.letters))
	}
	for _, l := range storage.letters {
		dot := strings.LastIndexByte(l.Name, '.')
		if hash := l.Name[dot+1:]; len(hash) != 20 || strings.Trim(hash, "0123456789abcdef") != "" {
			t.Errorf("name %q", l.Name)
		}
		whole, err := s.Get(t.Context(), l.Name)
		if err != nil || whole.Failure.Error != "first" || whole.Name != l.Name || !strings.HasPrefix(l.Name, whole.Vertex+".") {
			t.Errorf("%q: %+v, %v", l.Name, whole, err)
		}
	}
	// People have these names in their scripts, and stores of earlier versions in their letters.
	if got := name("a", "in/1"); got != storage.letters[0].Name || got != "a.e898d281cb61d837c49d" {
		t.Errorf("the name of in/1 is %s", got)
	}
}

// TestEvidenceIsBoundedAndText: its end is kept, since the cause of a crash is printed last, and a head is one line of valid JSON whatever a function wrote.
func TestEvidenceIsBoundedAndText(t *testing.T) {
	storage := &list{}
	s := New(storage, "p", nil)
	long := strings.Repeat("x", maxEvidence) + "the end"
	given := Failure{Reason: Panic, Error: "bad \xff\xfe", Stack: long, Output: strings.Repeat("ü", maxEvidence)}
	f := given
	if err := s.Put(t.Context(), "v", message("1"), &f); err != nil {
		t.Fatal(err)
	}
	l, err := s.Get(t.Context(), storage.letters[0].Name)
	if err != nil {
		t.Fatal(err)
	}
	if l.Failure.Error != "bad ?" || len(l.Failure.Stack) != maxEvidence+3 || !strings.HasPrefix(l.Failure.Stack, "...x") || !strings.HasSuffix(l.Failure.Stack, "the end") ||
		len(l.Failure.Output) > maxEvidence+4 || !utf8.ValidString(l.Failure.Output) {
		t.Errorf("error %q, stack of %d bytes, output of %d", l.Failure.Error, len(l.Failure.Stack), len(l.Failure.Output))
	}
	if bytes.ContainsAny(storage.letters[0].Head, "\n\r") || f != given {
		t.Errorf("the head has more lines than one, or the caller's evidence was changed")
	}
}

// TestDamagedLetterIsAnErrorWithItsName, and not a letter without its message.
func TestDamagedLetterIsAnErrorWithItsName(t *testing.T) {
	storage := &list{}
	s := New(storage, "p", nil)
	if err := s.Put(t.Context(), "v", message("1"), &Failure{}); err != nil {
		t.Fatal(err)
	}
	good := storage.letters[0]
	empty, err := flow.Encode(&flow.Block{Lane: "v", Lo: 1, Hi: 1}, flow.None)
	if err != nil {
		t.Fatal(err)
	}
	cut := bytes.Clone(good.Payload)
	cut[len(cut)-1] ^= 1
	for what, damaged := range map[string]Stored{
		"a head that is no JSON":      {good.Name, []byte("{"), good.Payload},
		"a payload that was changed":  {good.Name, good.Head, cut},
		"a payload that is cut":       {good.Name, good.Head, good.Payload[:3]},
		"a payload without a message": {good.Name, good.Head, empty},
		"a payload that is not there": {good.Name, good.Head, nil},
	} {
		storage.letters[0] = damaged
		if l, err := s.Get(t.Context(), good.Name); err == nil || !strings.Contains(err.Error(), good.Name) {
			t.Errorf("%s: %+v, %v", what, l, err)
		}
	}
	storage.letters = []Stored{good, {good.Name + "x", []byte("{"), nil}}
	page, _, err := s.Page(t.Context(), "", 0, 10)
	if len(page) != 1 || err == nil || !strings.Contains(err.Error(), good.Name+"x") {
		t.Errorf("a page with one that is damaged: %v, %v", page, err)
	}
}

// TestWhatIsNotThereIsNotFound, for Get and Drop, and a letter that was dropped is gone.
func TestWhatIsNotThereIsNotFound(t *testing.T) {
	storage := &list{}
	s := New(storage, "p", nil)
	if err := s.Put(t.Context(), "v", message("1"), &Failure{}); err != nil {
		t.Fatal(err)
	}
	at := storage.letters[0].Name
	if err := s.Drop(t.Context(), at); err != nil || len(storage.letters) != 0 {
		t.Errorf("%v, %d letters", err, len(storage.letters))
	}
	_, err := s.Get(t.Context(), at)
	if again := s.Drop(t.Context(), at); !errors.Is(err, ErrNotFound) || !errors.Is(again, ErrNotFound) {
		t.Errorf("%v, %v", err, again)
	}
}

// TestPagesVisitEveryLetterOfAVertexOnce.
func TestPagesVisitEveryLetterOfAVertexOnce(t *testing.T) {
	s := New(&list{}, "p", nil)
	for i := range 10 {
		if err := s.Put(t.Context(), []string{"a", "b"}[i%2], message(fmt.Sprint(i)), &Failure{}); err != nil {
			t.Fatal(err)
		}
	}
	for vertex, want := range map[string]string{"a": "0 2 4 6 8", "": "0 1 2 3 4 5 6 7 8 9", "c": ""} {
		var got []string
		for after := uint64(0); ; {
			page, next, err := s.Page(t.Context(), vertex, after, 2)
			if err != nil || len(page) > 2 {
				t.Fatalf("%v, %v", page, err)
			}
			for i := range page {
				got = append(got, page[i].ID)
			}
			if after = next; after == 0 {
				break
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("letters of %q: %v", vertex, got)
		}
	}
}

// silent is a Storage that answers only when the time of a request is over.
type silent struct {
	Storage
	asked int
}

func (*silent) Name() string { return "letters" }

func (s *silent) Add(ctx context.Context, _ Stored) error {
	s.asked++
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	<-ctx.Done()
	return ctx.Err()
}

// TestStoreThatDoesNotAnswerIsAskedUntilTheContextEnds: its message is not acknowledged meanwhile. One line of log names vertex, message and store.
func TestStoreThatDoesNotAnswerIsAskedUntilTheContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		storage := &silent{}
		s := New(storage, "p", slog.New(slog.NewTextHandler(&out, nil)))
		stop := errors.New("stopping")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(20*time.Second, func() { cancel(stop) })
		begun := time.Now()
		err := s.Put(ctx, "v", message("in/1"), &Failure{})
		if !errors.Is(err, stop) || time.Since(begun) != 20*time.Second || storage.asked != 4 {
			t.Errorf("error %v after %v, asked %d times", err, time.Since(begun), storage.asked)
		}
		if line := out.String(); strings.Count(line, "\n") != 1 || !strings.Contains(line, "vertex=v message=in/1 stream=letters") {
			t.Errorf("logged: %s", line)
		}
	})
}
