package standalone

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
)

// LetterQuery selects dead letters.
type LetterQuery struct {
	// Pipeline is NAME or NAMESPACE/NAME, Vertex a vertex of it; empty for all.
	Pipeline, Vertex string
	// After is LetterPage.Next of the page before; empty for the first.
	After string
	// Limit is how many letters make a page, from 1 to 1000.
	Limit int
}

// LetterPage is a part of a list, oldest letters of each pipeline first.
type LetterPage struct {
	Letters []deadletter.Letter `json:"letters"`
	// Next asks for the following page; empty if this is the last one.
	Next string `json:"next,omitempty"`
}

// maxPage bounds a page of the API.
const maxPage = 1000

// pageStore is the store of one pipeline among those that a list goes through.
type pageStore struct {
	key   string // unique among them, and the same for every page
	store *deadletter.Store
}

// pageOf reads a page over several stores: the cursor is the key of the store where the last page ended, and the cursor there.
func pageOf(ctx context.Context, stores []pageStore, q LetterQuery) (LetterPage, error) {
	page := LetterPage{Letters: []deadletter.Letter{}}
	limit := min(max(q.Limit, 1), maxPage)
	slices.SortFunc(stores, func(a, b pageStore) int { return strings.Compare(a.key, b.key) })
	from, after, err := parseCursor(q.After)
	if err != nil {
		return page, err
	}
	for i, s := range stores {
		if s.key < from {
			continue
		}
		start := uint64(0)
		if s.key == from {
			start = after
		}
		letters, next, err := s.store.Page(ctx, q.Vertex, start, limit-len(page.Letters))
		if err != nil {
			return page, err
		}
		page.Letters = append(page.Letters, letters...)
		switch {
		case next != 0:
			page.Next = s.key + ":" + strconv.FormatUint(next, 10)
			return page, nil
		case len(page.Letters) == limit && i+1 < len(stores):
			page.Next = stores[i+1].key + ":0"
			return page, nil
		}
	}
	return page, nil
}

// parseCursor reads where a page begins: after a letter of a store. The empty cursor is the first page.
func parseCursor(cursor string) (key string, after uint64, err error) {
	if cursor == "" {
		return "", 0, nil
	}
	key, seq, ok := strings.Cut(cursor, ":")
	if after, err = strconv.ParseUint(seq, 10, 64); !ok || err != nil {
		return "", 0, fmt.Errorf("%w: %q is not a cursor that a list printed", errBadCursor, cursor)
	}
	return key, after, nil
}

// named reports whether a pipeline is meant by NAME or NAMESPACE/NAME.
func named(query, namespace, name string) bool {
	return query == name || query == namespace+"/"+name
}

// letterQuery reads what a request asks for.
func letterQuery(req *http.Request) (LetterQuery, error) {
	q := LetterQuery{Pipeline: req.FormValue("pipeline"), Vertex: req.FormValue("vertex"), After: req.FormValue("after"), Limit: maxPage}
	if text := req.FormValue("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxPage {
			return q, fmt.Errorf("%w: limit must be from 1 to %d, not %q", errBadCursor, maxPage, text)
		}
		q.Limit = n
	}
	return q, nil
}

func (a *api) list(w http.ResponseWriter, req *http.Request) error {
	q, err := letterQuery(req)
	if err != nil {
		return err
	}
	var stores []pageStore
	for _, p := range a.pipelines {
		if q.Pipeline == "" || named(q.Pipeline, p.Namespace, p.Name) {
			stores = append(stores, pageStore{p.Namespace + "/" + p.Kind + "/" + p.Name, p.letters})
		}
	}
	page, err := pageOf(req.Context(), stores, q)
	if err != nil {
		return err
	}
	return answer(w, page)
}

func (l *remoteLetters) Page(ctx context.Context, q LetterQuery) (page LetterPage, err error) {
	values := url.Values{"pipeline": {q.Pipeline}, "vertex": {q.Vertex}, "after": {q.After}, "limit": {strconv.Itoa(min(max(q.Limit, 1), maxPage))}}
	return page, l.call(ctx, http.MethodGet, "deadletters?"+values.Encode(), &page)
}

func (l *localLetters) Page(ctx context.Context, q LetterQuery) (LetterPage, error) {
	found, err := l.stores(ctx, q.Pipeline)
	if err != nil {
		return LetterPage{}, err
	}
	stores := make([]pageStore, len(found))
	for i, s := range found {
		stores[i] = pageStore{s.Prefix, s.Store}
		if s.Owner.Name != "" {
			stores[i].key = s.Owner.Namespace + "/" + string(s.Owner.Kind) + "/" + s.Owner.Name
		}
	}
	return pageOf(ctx, stores, q)
}
