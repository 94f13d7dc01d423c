package standalone

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/levada-io/levada/internal/broker"
	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/isb/jetstream"
)

// DeadLetters are the dead letters of a data directory, through the run that uses it or, when there is none, from the directory itself.
type DeadLetters interface {
	// Page lists letters. Get, Replay and Drop take a pipeline as NAME or NAMESPACE/NAME.
	Page(ctx context.Context, q LetterQuery) (LetterPage, error)
	Get(ctx context.Context, pipeline, name string) (*LetterView, error)
	Replay(ctx context.Context, pipeline, name string) error
	Drop(ctx context.Context, pipeline, name string) error
	Close()
}

// OpenDeadLetters opens the dead letters of a data directory, or those at a broker elsewhere.
func OpenDeadLetters(ctx context.Context, dataDir string, at Broker) (DeadLetters, error) {
	if b, err := os.ReadFile(filepath.Join(dataDir, controlFile)); err == nil {
		var c Control
		if err := json.Unmarshal(b, &c); err == nil {
			l := &remoteLetters{c}
			if err := l.call(ctx, http.MethodGet, "status", nil); err == nil {
				return l, nil
			}
		}
	}
	if at.embedded() {
		if _, err := os.Stat(filepath.Join(dataDir, "broker")); err != nil {
			return nil, fmt.Errorf("%s is not a data directory of `levada run`: name it with --data", dataDir)
		}
	}
	return openLocal(ctx, dataDir, at)
}

// remoteLetters asks the run that has the data directory.
type remoteLetters struct{ Control }

func (l *remoteLetters) call(ctx context.Context, method, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+l.Address+"/api/v1/"+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+l.Token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		return errors.New(string(bytes.TrimSpace(body)))
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(body, into)
}

func letterPath(pipeline, name string) string {
	return "deadletters/" + url.PathEscape(pipeline) + "/" + url.PathEscape(name)
}

func (l *remoteLetters) Get(ctx context.Context, pipeline, name string) (*LetterView, error) {
	v := &LetterView{}
	return v, l.call(ctx, http.MethodGet, letterPath(pipeline, name), v)
}

func (l *remoteLetters) Replay(ctx context.Context, pipeline, name string) error {
	return l.call(ctx, http.MethodPost, letterPath(pipeline, name)+"/replay", nil)
}

func (l *remoteLetters) Drop(ctx context.Context, pipeline, name string) error {
	return l.call(ctx, http.MethodDelete, letterPath(pipeline, name), nil)
}

func (l *remoteLetters) Close() {}

// localLetters opens the store itself: nothing else has that of a data directory, and others may use that of a broker elsewhere.
type localLetters struct {
	service isb.Service
	close   []func()
}

func openLocal(ctx context.Context, dataDir string, at Broker) (_ *localLetters, err error) {
	l := &localLetters{}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if !at.embedded() { // the directory is of no account, and a process may have it
		l.service, err = at.dial(ctx, nil, slog.Default())
	} else {
		var release func()
		if release, err = broker.LockDir(dataDir); err != nil {
			return nil, err
		}
		l.close = append(l.close, release)
		var b *broker.Broker
		if b, err = broker.Start(broker.Config{Dir: filepath.Join(dataDir, "broker"), MaxPayload: 64 << 20}); err != nil {
			return nil, err
		}
		l.close = append(l.close, b.Stop)
		l.service, err = jetstream.Connect(ctx, jetstream.Config{Server: b})
	}
	if err != nil {
		return nil, err
	}
	l.close = append(l.close, l.service.Close)
	return l, nil
}

func (l *localLetters) Close() {
	for i := len(l.close) - 1; i >= 0; i-- {
		l.close[i]()
	}
}

// stores are the dead letters of all pipelines, or of those of a name, as they are: nothing is created or changed.
func (l *localLetters) stores(ctx context.Context, pipeline string) ([]isb.Letters, error) {
	all, err := l.service.DeadLetters(ctx)
	return slices.DeleteFunc(all, func(s isb.Letters) bool {
		switch {
		case pipeline == "":
			return false
		case s.Owner.Name == "":
			return !strings.HasSuffix(s.Prefix, "-"+pipeline[strings.LastIndexByte(pipeline, '/')+1:])
		}
		return !named(pipeline, s.Owner.Namespace, s.Owner.Name)
	}), err
}

// find returns a letter with its store.
func (l *localLetters) find(ctx context.Context, pipeline, name string) (*deadletter.Letter, isb.Letters, error) {
	stores, err := l.stores(ctx, pipeline)
	if err != nil {
		return nil, isb.Letters{}, err
	}
	for _, s := range stores {
		letter, err := s.Get(ctx, name)
		if err == nil && (letter.Pipeline == pipeline || strings.HasSuffix(pipeline, "/"+letter.Pipeline)) {
			return letter, s, nil
		}
		if err != nil && !errors.Is(err, deadletter.ErrNotFound) {
			return nil, isb.Letters{}, err
		}
	}
	return nil, isb.Letters{}, fmt.Errorf("%w: %s of pipeline %s", deadletter.ErrNotFound, name, pipeline)
}

func (l *localLetters) Get(ctx context.Context, pipeline, name string) (*LetterView, error) {
	letter, _, err := l.find(ctx, pipeline, name)
	if err != nil {
		return nil, err
	}
	v := viewOf(letter)
	return &v, nil
}

func (l *localLetters) Drop(ctx context.Context, pipeline, name string) error {
	_, s, err := l.find(ctx, pipeline, name)
	if err != nil {
		return err
	}
	return s.Drop(ctx, name)
}

func (l *localLetters) Replay(ctx context.Context, pipeline, name string) error {
	letter, s, err := l.find(ctx, pipeline, name)
	if err != nil {
		return err
	}
	driver, err := l.service.AttachVertex(ctx, s, letter.Vertex)
	if err != nil {
		return err
	}
	if driver == nil {
		return replay(ctx, s.Store, letter, nil)
	}
	// A process somewhere else may be reading the buffer: it is written to and nothing else.
	w, err := buffer.OpenWriter(ctx, driver, buffer.Options{Name: letter.Pipeline + "/" + letter.Vertex})
	if err != nil {
		return errors.Join(err, driver.Close())
	}
	return errors.Join(replay(ctx, s.Store, letter, into([]*buffer.Writer{w})), w.Close())
}
