package redis

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/naming"
)

// letters keeps the dead letters of a pipeline; it implements deadletter.Storage. Its keys begin with levada:{NAME_DEADLETTERS}:
//
//	meta      hash: tag, and number, the last one given to a letter
//	order     sorted set of the names, by number
//	heads     hash: name to head
//	payloads  hash: name to payload
type letters struct {
	service *Service
	owner   naming.Owner
}

var _ deadletter.Storage = (*letters)(nil)

var (
	//go:embed addletter.lua
	addLetterLua string
	//go:embed removeletter.lua
	removeLetterLua string
	//go:embed getletter.lua
	getLetterLua string

	addLetterScript    = redis.NewScript(addLetterLua)
	removeLetterScript = redis.NewScript(removeLetterLua)
	getLetterScript    = redis.NewScript(getLetterLua)
)

const (
	// payloadTimeout bounds a request with a payload, which can be large.
	payloadTimeout = time.Minute
	// reserve is how far letters may pass the memory limit of a server that is full: a message that waits for its letter can be the one that keeps the buffer full.
	reserve = 16 << 20
	// pageLetters is how many letters one request lists.
	pageLetters = 500
)

func (l *letters) key(name string) string { return "levada:{" + l.owner.DeadLetters() + "}:" + name }

// Name implements deadletter.Storage.
func (l *letters) Name() string { return l.key("letters") }

// keys are those of the scripts.
func (l *letters) keys() []string {
	return []string{l.key("meta"), l.key("order"), l.key("heads"), l.key("payloads")}
}

// open creates what is needed for an empty list, and checks whose it is.
func (l *letters) open(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	tag := naming.Tag{Owner: l.owner, Role: naming.RoleDeadLetters}
	text, err := json.Marshal(tag.In(nil))
	if err != nil {
		return err
	}
	c, meta := l.service.link.Client, l.key("meta")
	if err := l.service.note(c.HSetNX(ctx, meta, "tag", text).Err()); err != nil {
		return fmt.Errorf("key %s: %w", meta, err)
	}
	stored, err := c.HGet(ctx, meta, "tag").Result()
	if err = l.service.note(err); err != nil {
		return fmt.Errorf("key %s: %w", meta, err)
	}
	have, err := tagOf(stored)
	if err == nil {
		_, err = tag.Check(meta, have)
	}
	return err
}

// script runs a script on the letters.
func (l *letters) script(ctx context.Context, s *redis.Script, args ...any) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, payloadTimeout)
	defer cancel()
	answer, err := s.Run(ctx, l.service.link.Client, l.keys(), args...).Result()
	return answer, l.service.note(err)
}

// Add implements deadletter.Storage.
func (l *letters) Add(ctx context.Context, s deadletter.Stored) error {
	_, err := l.script(ctx, addLetterScript, s.Name, s.Head, s.Payload, reserve)
	return err
}

// Get implements deadletter.Storage.
func (l *letters) Get(ctx context.Context, name string) (deadletter.Stored, error) {
	answer, err := l.script(ctx, getLetterScript, name)
	if err != nil {
		return deadletter.Stored{}, fmt.Errorf("dead letter %s: %w", name, err)
	}
	said, ok := answer.([]any)
	if !ok || len(said) != 2 {
		return deadletter.Stored{}, fmt.Errorf("dead letter %s: unexpected answer", name)
	}
	head, _ := said[0].(string)
	payload, _ := said[1].(string)
	return deadletter.Stored{Name: name, Head: []byte(head), Payload: []byte(payload)}, nil
}

// Remove implements deadletter.Storage.
func (l *letters) Remove(ctx context.Context, name string) error {
	if _, err := l.script(ctx, removeLetterScript, name); err != nil {
		return fmt.Errorf("dead letter %s: %w", name, err)
	}
	return nil
}

// Page implements deadletter.Storage.
func (l *letters) Page(ctx context.Context, vertex string, after uint64, limit int) (page []deadletter.Stored, next uint64, err error) {
	for {
		some, err := l.named(ctx, after)
		if err != nil {
			return page, next, err
		}
		for _, z := range some {
			name := fmt.Sprint(z.Member)
			after = uint64(z.Score)
			if vertex != "" && !strings.HasPrefix(name, vertex+".") {
				continue
			}
			if len(page) == limit {
				page, err = l.fill(ctx, page)
				return page, next, err
			}
			page, next = append(page, deadletter.Stored{Name: name}), after
		}
		if len(some) < pageLetters {
			page, err = l.fill(ctx, page)
			return page, 0, err
		}
	}
}

// named returns names with their numbers, those after a number.
func (l *letters) named(ctx context.Context, after uint64) ([]redis.Z, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	some, err := l.service.link.Client.ZRangeArgsWithScores(ctx, redis.ZRangeArgs{
		Key: l.key("order"), Start: "(" + strconv.FormatUint(after, 10), Stop: "+inf", ByScore: true, Count: pageLetters,
	}).Result()
	if err = l.service.note(err); err != nil {
		return nil, fmt.Errorf("dead letters %s: %w", l.Name(), err)
	}
	return some, nil
}

// fill reads the heads, and leaves out letters that were removed meanwhile.
func (l *letters) fill(ctx context.Context, page []deadletter.Stored) ([]deadletter.Stored, error) {
	ctx, cancel := context.WithTimeout(ctx, payloadTimeout)
	defer cancel()
	for part := range slices.Chunk(page, pageLetters) {
		names := make([]string, len(part))
		for i := range part {
			names[i] = part[i].Name
		}
		heads, err := l.service.link.Client.HMGet(ctx, l.key("heads"), names...).Result()
		if err = l.service.note(err); err != nil {
			return nil, fmt.Errorf("dead letters %s: %w", l.Name(), err)
		}
		for i := range part {
			head, _ := heads[i].(string)
			part[i].Head = []byte(head)
		}
	}
	return slices.DeleteFunc(page, func(s deadletter.Stored) bool { return len(s.Head) == 0 }), nil
}

// DeadLetters implements isb.Service.
func (s *Service) DeadLetters(ctx context.Context) (all []isb.Letters, err error) {
	owners, err := s.owners(ctx)
	if err != nil {
		return nil, err
	}
	for _, o := range owners {
		p := &place{s, o}
		if err := p.open(ctx, "attach", ""); errors.Is(err, errNone) {
			p.owner = o // its letters may still be there
		} else if err != nil {
			return nil, err
		}
		l := &letters{s, p.owner}
		there, err := l.exists(ctx)
		if err != nil {
			return nil, err
		}
		if there {
			all = append(all, isb.Letters{Store: deadletter.New(l, o.Name, nil), Owner: p.owner})
		}
	}
	return all, nil
}

func (l *letters) exists(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	n, err := l.service.link.Client.Exists(ctx, l.key("meta")).Result()
	return n > 0, l.service.note(err)
}
