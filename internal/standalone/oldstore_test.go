package standalone_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/broker"
	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	service "github.com/levada-io/levada/internal/dataplane/isb/jetstream"
	"github.com/levada-io/levada/internal/dataplane/isb/jetstream/jetstreambuffer"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/source/filesource"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/internal/standalone"
)

// oldStore is a store in a data directory, in the format of the versions that had neither incarnations nor metadata: names joined with '-'.
type oldStore struct {
	t     *testing.T
	js    jetstream.JetStream
	conn  *nats.Conn
	b     *broker.Broker
	state jetstream.KeyValue
	name  string
}

func newOldStore(t *testing.T, s *site, name string) *oldStore {
	t.Helper()
	b, err := broker.Start(broker.Config{Dir: filepath.Join(s.cfg.DataDir, "broker")})
	if err != nil {
		t.Fatal(err)
	}
	o := &oldStore{t: t, b: b, name: name}
	if o.conn, err = b.Connect(); err != nil {
		t.Fatal(err)
	}
	if o.js, err = jetstream.New(o.conn); err != nil {
		t.Fatal(err)
	}
	o.state, err = jetstreambuffer.OpenBucket(t.Context(), o.js, name+"_STATE", naming.Tag{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func (o *oldStore) close() {
	o.conn.Close()
	o.b.Stop()
}

// fill puts the first messages of the file into a vertex's buffer, as an old version did, and dies before it saved how far the source was.
func (o *oldStore) fill(s *site, vertex string, messages int) {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), 30*time.Second)
	defer cancel()
	driver, err := jetstreambuffer.Open(ctx, o.js, jetstreambuffer.Config{Stream: o.name + "-" + vertex + "-0", State: o.state})
	if err != nil {
		o.t.Fatal(err)
	}
	p, err := buffer.Open(ctx, driver, buffer.Options{})
	if err != nil {
		o.t.Fatal(err)
	}
	file, err := filesource.New(ctx, filesource.Config{Path: filepath.Join(s.dir, "data.txt"), Positions: forgetful{}})
	if err != nil {
		o.t.Fatal(err)
	}
	b, err := file.Read(ctx, messages)
	if err != nil {
		o.t.Fatal(err)
	}
	var e flow.Encoder
	e.Reset(b.Lo)
	for i := range b.Messages {
		b.Messages[i].ID = flow.RootID("in/data.txt", "") + "1"
		e.Append(&b.Messages[i])
	}
	w, err := p.Write(ctx, &flow.Block{Lane: "in/data.txt", Lo: b.Lo, Hi: b.Hi, Watermark: flow.NoWatermark}, &e)
	if err != nil {
		o.t.Fatal(err)
	}
	if err := errors.Join(w.Wait(ctx), p.Close(ctx)); err != nil {
		o.t.Fatal(err)
	}
}

type forgetful struct{}

func (forgetful) Load(context.Context, string) ([]byte, error) { return nil, nil }
func (forgetful) Save(context.Context, string, []byte) error   { return nil }

// letter puts a dead letter into the store.
func (o *oldStore) letter(pipeline, vertex, value string) {
	o.t.Helper()
	letters, err := service.OpenLetters(o.t.Context(), o.js, o.name+"_DEADLETTERS", naming.Tag{}, 1)
	if err == nil {
		err = deadletter.New(letters, pipeline, nil).Put(o.t.Context(), vertex, &flow.Message{ID: "in/data.txt/7", Pos: 7, Value: []byte(value)}, &deadletter.Failure{Reason: deadletter.Error})
	}
	if err != nil {
		o.t.Fatal(err)
	}
}

// streams are the names of all streams in a data directory, and their tags.
func (s *site) streams(t *testing.T) map[string]naming.Tag {
	t.Helper()
	b, err := broker.Start(broker.Config{Dir: filepath.Join(s.cfg.DataDir, "broker")})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Stop()
	conn, err := b.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]naming.Tag{}
	list := js.ListStreams(t.Context())
	for info := range list.Info() {
		found[info.Config.Name], _ = naming.TagOf(info.Config.Metadata)
	}
	if err := list.Err(); err != nil {
		t.Fatal(err)
	}
	return found
}

// What an earlier version left is taken up under its old names: what its buffers hold is delivered, what was written again counts once, and its
// lanes are called as they were.
func TestOldStoreIsAdopted(t *testing.T) {
	s := newSite(t)
	input := numbered("line", 100)
	s.write(t, "data.txt", input...)
	o := newOldStore(t, s, "default-p")
	o.fill(s, "out", 60)
	o.letter("p", "out", "a letter")
	o.close()

	s.must(t, pipelineFile("p", "out"))
	if got := s.lines(t, "out.txt"); !slices.Equal(got, input) {
		t.Fatalf("%d lines instead of %d", len(got), len(input))
	}
	s.must(t, pipelineFile("p", "out")) // adopted once, it is found again
	if got := s.lines(t, "out.txt"); !slices.Equal(got, input) {
		t.Fatalf("%d lines instead of %d after a second run", len(got), len(input))
	}
	found := s.streams(t)
	for _, name := range []string{"default-p-out-0", "KV_default-p_STATE", "default-p_DEADLETTERS"} {
		if tag, ok := found[name]; !ok || tag.Owner.Name != "p" || tag.Owner.Namespace != "default" || tag.Owner.Kind != naming.Pipeline || tag.Owner.Incarnation != "" {
			t.Errorf("stream %s: %+v, %v", name, tag, ok)
		}
	}
	if len(found) != 3 {
		t.Errorf("streams besides the adopted ones: %v", found)
	}
}

// The commands for dead letters find those of old stores, adopted or not, and of new ones.
func TestDeadLettersOfOldStoresAreFound(t *testing.T) {
	for _, adopted := range []bool{false, true} {
		s := newSite(t)
		s.write(t, "data.txt", numbered("line", 5)...)
		o := newOldStore(t, s, "default-p")
		o.fill(s, "out", 5)
		o.letter("p", "out", "a letter")
		o.close()
		if adopted {
			s.must(t, pipelineFile("p", "out"))
		}
		s.must(t, strings.ReplaceAll(monoFile("q"), "out.txt", "q.txt")) // a store of the new format beside it
		d, err := standalone.OpenDeadLetters(t.Context(), s.cfg.DataDir, standalone.Broker{})
		if err != nil {
			t.Fatal(err)
		}
		for _, pipeline := range []string{"", "p"} {
			page, err := d.Page(t.Context(), standalone.LetterQuery{Pipeline: pipeline, Limit: 10})
			letters := page.Letters
			if err != nil || len(letters) != 1 {
				t.Fatalf("adopted %v, pipeline %q: %v, %v", adopted, pipeline, letters, err)
			}
		}
		page, _ := d.Page(t.Context(), standalone.LetterQuery{Pipeline: "p", Vertex: "out", Limit: 10})
		letters := page.Letters
		if err := d.Replay(t.Context(), "p", letters[0].Name); err != nil {
			t.Fatalf("adopted %v: %v", adopted, err)
		}
		d.Close()
		s.must(t, pipelineFile("p", "out"))
		if got := s.lines(t, "out.txt"); len(got) != 6 || !slices.Contains(got, "a letter") {
			t.Errorf("adopted %v: %q", adopted, got)
		}
	}
}

// The old name of a store does not say whose it is. A manifest that has none of its vertices did not write it.
func TestOldStoreOfAnotherPipelineIsNotAdopted(t *testing.T) {
	manifest := func(namespace, name, vertex string) string {
		return strings.Replace(pipelineFile(name, vertex), "metadata: {name: "+name+"}", "metadata: {namespace: "+namespace+", name: "+name+"}", 1)
	}
	s := newSite(t)
	input := numbered("line", 20)
	s.write(t, "data.txt", input...)
	o := newOldStore(t, s, "x-y-z")
	o.fill(s, "out", 20)
	o.close()

	err := s.run(t, strings.ReplaceAll(manifest("x-y", "z", "drain"), "in,", "from,"))
	if err == nil || !strings.Contains(err.Error(), "x-y-z_STATE") || !strings.Contains(err.Error(), "x-y/z") {
		t.Errorf("a store of other vertices: %v", err)
	}
	s.must(t, manifest("x", "y-z", "out")) // its owner
	if got := s.lines(t, "out.txt"); !slices.Equal(got, input) {
		t.Fatalf("%d lines instead of %d", len(got), len(input))
	}
	// Now it is known whose it is, and the other one has a store of its own.
	s.must(t, strings.ReplaceAll(manifest("x-y", "z", "out"), "out.txt", "other.txt"))
	if got := s.lines(t, "other.txt"); !slices.Equal(got, input) {
		t.Fatalf("%d lines instead of %d", len(got), len(input))
	}
	if !strings.Contains(s.logs.String(), "belongs to another owner") {
		t.Error("nothing is said of the old store of another owner")
	}
}
