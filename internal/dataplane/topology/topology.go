// Package topology knows the shape of a pipeline, as it is stored beside its buffers, and what a changed manifest means for messages in flight.
// It is pure: the caller reads the store and counts the messages.
//
// A change is unsafe when a message in flight would be lost (nothing reads its buffer any more), counted twice (it was written in part, and would now be
// written elsewhere), or overtaken although its vertex is ordered. Everything else about a manifest may change at any time and is not compared:
// functions, images, environment, limits, retries, compression.
package topology

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Format is the version of the stored form. It is raised when an older Levada could harm a store by not knowing what is new.
const Format = 1

// Topology is the shape of a Pipeline or MonoVertex.
type Topology struct {
	Format int `json:"format"`
	// Levada is the version that wrote the record.
	Levada    string `json:"levada,omitempty"`
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Incarnation is that of the store.
	Incarnation string   `json:"incarnation,omitempty"`
	Vertices    []Vertex `json:"vertices"`
	Edges       []Edge   `json:"edges,omitempty"`
	// Partial says that the record was made from the streams of a store without one: edges, sources and sinks are unknown.
	Partial bool `json:"partial,omitempty"`

	// What it takes to run the pipeline once more as it was: the manifests as YAML, the directory of relative paths, the programs of containers.
	Manifest  string            `json:"manifest,omitempty"`
	Dir       string            `json:"dir,omitempty"`
	Functions map[string]string `json:"functions,omitempty"`
	// Replicas are those of its streams that the user gave; 0 for those that were chosen.
	Replicas int `json:"replicas,omitempty"`
}

// Vertex is a vertex. Partitions and Streams are those of its input buffer; a source has none.
type Vertex struct {
	Name       string              `json:"name"`
	Kind       string              `json:"kind"`
	Partitions int                 `json:"partitions,omitempty"`
	Streams    []string            `json:"streams,omitempty"`
	Ordered    bool                `json:"ordered,omitempty"`
	Memory     bool                `json:"memory,omitempty"`
	Source     *Endpoint           `json:"source,omitempty"`
	Sinks      map[string]Endpoint `json:"sinks,omitempty"` // by role: sink, fallback, onSuccess
}

// Endpoint is the outer end of a source or sink.
type Endpoint struct {
	Type string `json:"type"`
	// Of identifies the input or output: the absolute path of a file, the name of a stream. Empty where nothing does.
	Of string `json:"of,omitempty"`
	// Cursor names what remembers how far an input was read, or what keeps the records of an output. The same input with another cursor is read again from its
	// start. Empty where nothing of ours is remembered.
	Cursor string `json:"cursor,omitempty"`
	// How says how the input is divided into messages. Positions of messages depend on it.
	How string `json:"how,omitempty"`
	// ByID says that messages have ids and no positions.
	ByID bool `json:"byID,omitempty"`
}

func (e Endpoint) String() string {
	if e.Of == "" {
		return e.Type
	}
	return e.Type + " " + e.Of
}

func (e Endpoint) same(o Endpoint) bool { return e.Type == o.Type && e.Of == o.Of }

// Edge is a way from one vertex to another.
type Edge struct {
	From string `json:"from"`
	To   string `json:"to"`
	// Condition is conditions.tags as text; empty for none.
	Condition string `json:"condition,omitempty"`
	// Discard is onFull: discardLatest.
	Discard bool `json:"discard,omitempty"`
}

// Vertex returns a vertex by its name, or nil.
func (t *Topology) Vertex(name string) *Vertex {
	for i := range t.Vertices {
		if t.Vertices[i].Name == name {
			return &t.Vertices[i]
		}
	}
	return nil
}

// ID is namespace/name.
func (t *Topology) ID() string { return t.Namespace + "/" + t.Name }

// Encode returns the stored form.
func (t *Topology) Encode() ([]byte, error) { return json.Marshal(t) }

// NewerError means that a newer Levada wrote the store.
type NewerError struct {
	Format int
	Levada string
}

func (e *NewerError) Error() string {
	by := "a newer levada"
	if e.Levada != "" {
		by = "levada " + e.Levada
	}
	return fmt.Sprintf("the store was written by %s in format %d, and this levada reads formats up to %d: use that version or a newer one", by, e.Format, Format)
}

// Decode reads the stored form. The error is a *NewerError if this Levada does not know the format.
func Decode(b []byte) (*Topology, error) {
	var head struct {
		Format int    `json:"format"`
		Levada string `json:"levada"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, fmt.Errorf("the topology record of the store is damaged: %w", err)
	}
	if head.Format > Format {
		return nil, &NewerError{head.Format, head.Levada}
	}
	t := &Topology{}
	if err := json.Unmarshal(b, t); err != nil {
		return nil, fmt.Errorf("the topology record of the store is damaged: %w", err)
	}
	return t, nil
}

// FromStreams is the topology of a store without a record: what its streams say.
func FromStreams(kind, namespace, name string, streams map[string][]string) *Topology {
	t := &Topology{Kind: kind, Namespace: namespace, Name: name, Partial: true}
	for v, s := range streams {
		t.Vertices = append(t.Vertices, Vertex{Name: v, Partitions: len(s), Streams: s})
	}
	slices.SortFunc(t.Vertices, func(a, b Vertex) int { return strings.Compare(a.Name, b.Name) })
	return t
}

// Shared returns an input that both read and remember, and an output that both write; empty where there is none.
func Shared(a, b *Topology) (in, out string) {
	for i := range a.Vertices {
		for k := range b.Vertices {
			v, w := &a.Vertices[i], &b.Vertices[k]
			if v.Source != nil && w.Source != nil && v.Source.Of != "" && v.Source.Cursor != "" && v.Source.same(*w.Source) {
				in = v.Source.String()
			}
			for _, x := range v.Sinks {
				for _, y := range w.Sinks {
					if x.Of != "" && x.same(y) {
						out = x.String()
					}
				}
			}
		}
	}
	return in, out
}
