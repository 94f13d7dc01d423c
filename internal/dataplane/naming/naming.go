// Package naming decides what everything that a pipeline keeps at a broker is called, and whose it is. It is pure: no broker, no clock.
//
// Names are joined of components with '_', which no Kubernetes name contains, and end in a word in capitals or a number. So two owners never
// share a name. The owner is also written into the metadata of each stream and bucket, and checked whenever one is opened: a name says
// what is meant, metadata says what is there. See docs/decisions/0007-identity-of-a-message.md.
package naming

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Kind is the kind of manifest that an owner comes from.
type Kind string

// The kinds that own something at a broker.
const (
	Pipeline   Kind = "Pipeline"
	MonoVertex Kind = "MonoVertex"
)

// Owner is a Pipeline or a MonoVertex.
type Owner struct {
	Namespace string
	Kind      Kind
	Name      string
	// Incarnation names the lifetime of the owner's store. It is empty for stores that were written before there were incarnations.
	Incarnation string
}

// New checks the names, which become parts of streams' names and subjects.
func New(namespace string, kind Kind, name string) (Owner, error) {
	o := Owner{Namespace: namespace, Kind: kind, Name: name}
	if len(validation.IsDNS1123Label(namespace)) > 0 {
		return o, fmt.Errorf("%s %s: metadata.namespace: %s is not a namespace: %s", kind, quote(name), quote(namespace), labelRule)
	}
	if len(validation.IsDNS1123Label(name)) > 0 {
		return o, fmt.Errorf("%s in namespace %s: metadata.name: %s is not a name: %s", kind, namespace, quote(name), labelRule)
	}
	return o, nil
}

// CheckVertex checks the name of a vertex, for the same reason.
func (o Owner) CheckVertex(name string) error {
	if len(validation.IsDNS1123Label(name)) > 0 {
		return fmt.Errorf("%v: vertex name %s is not a name: %s", o, quote(name), labelRule)
	}
	return nil
}

const labelRule = "give at most 63 lower-case letters, digits and '-', beginning and ending with a letter or digit"

func quote(s string) string {
	if len(s) > 80 {
		s = s[:80] + "..."
	}
	return strconv.QuoteToASCII(s)
}

// String is how errors and logs name the owner.
func (o Owner) String() string { return string(o.Kind) + " " + o.Namespace + "/" + o.Name }

// Is reports whether both are the same Pipeline or MonoVertex, of whatever incarnation.
func (o Owner) Is(other Owner) bool {
	return o.Namespace == other.Namespace && o.Kind == other.Kind && o.Name == other.Name
}

// prefix begins all names of the owner. "MONO" stands where a pipeline has its name: no pipeline can be called so.
func (o Owner) prefix() string {
	if o.Kind == MonoVertex {
		return "levada_" + o.Namespace + "_MONO_" + o.Name
	}
	return "levada_" + o.Namespace + "_" + o.Name
}

// State is the bucket that keeps positions, and what readers have seen.
func (o Owner) State() string { return bounded(o.prefix(), "_STATE") }

// DeadLetters is the stream of the dead letters.
func (o Owner) DeadLetters() string { return bounded(o.prefix(), "_DEADLETTERS") }

// Buffer is the stream of a partition of a vertex's buffer, and its consumer.
func (o Owner) Buffer(vertex string, partition int) string {
	return bounded(o.prefix(), "_"+vertex+"_"+strconv.Itoa(partition))
}

// Consumer is the durable consumer of a vertex that reads a stream that Levada does not own.
func (o Owner) Consumer(vertex string) string { return bounded(o.prefix(), "_"+vertex) }

// Payloads is the object store with the payloads of dead letters that are too large for a message of their stream.
func Payloads(deadLetters string) string { return deadLetters + "_PAYLOADS" }

// KVStream and ObjectStream are the streams behind a bucket and an object store.
func KVStream(bucket string) string     { return "KV_" + bucket }
func ObjectStream(bucket string) string { return "OBJ_" + bucket }

// maxName leaves room, in the 255 bytes that a stream's name may have, for what is put before and after a name: "OBJ_" and "_PAYLOADS".
const maxName = 240

// bounded shortens a name that is too long. Valid names never are: three labels of 63 bytes fit. The hash covers all of it, and the end stays readable.
func bounded(prefix, suffix string) string {
	name := prefix + suffix
	if len(name) <= maxName {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	if len(suffix) > 80 {
		suffix = suffix[len(suffix)-80:]
	}
	return prefix[:64] + "_H" + hex.EncodeToString(sum[:16]) + suffix
}

// Before there was this package, names were joined with '-', which names contain: they are ambiguous. What exists under such a name is
// adopted by its owner, and keeps its name.

// OldState is the old name of State.
func (o Owner) OldState() string { return o.Namespace + "-" + o.Name + oldState }

// OldDeadLetters is the old name of DeadLetters.
func (o Owner) OldDeadLetters() string { return o.Namespace + "-" + o.Name + OldDeadLettersSuffix }

// OldBuffer is the old name of Buffer, and what Numaflow calls the partition: metrics use it.
func (o Owner) OldBuffer(vertex string, partition int) string {
	return o.Namespace + "-" + o.Name + "-" + vertex + "-" + strconv.Itoa(partition)
}

const oldState = "_STATE"

// OldDeadLettersSuffix ends the old names of dead-letter streams.
const OldDeadLettersSuffix = "_DEADLETTERS"

// OldVertices returns the vertices that the keys of an old state bucket speak of. Who has none of them did not write it.
func (o Owner) OldVertices(keys []string) map[string]bool {
	vertices := map[string]bool{}
	for _, key := range keys {
		kind, rest, _ := strings.Cut(key, ".")
		switch kind {
		case "source":
			vertex, _, _ := strings.Cut(rest, ".")
			vertices[vertex] = true
		case "buffer":
			stream, _, _ := strings.Cut(rest, ".")
			vertex, ok := strings.CutPrefix(stream, o.Namespace+"-"+o.Name+"-")
			if at := strings.LastIndexByte(vertex, '-'); ok && at > 0 {
				vertex = vertex[:at]
			}
			vertices[vertex] = true
		}
	}
	return vertices
}

// Role is what a stream or bucket is for.
type Role string

// The roles.
const (
	RoleState       Role = "state"
	RoleBuffer      Role = "buffer"
	RoleDeadLetters Role = "dead-letters"
	RolePayloads    Role = "dead-letter-payloads"
	RoleConsumer    Role = "source-consumer" // of a stream that Levada does not own
)

// Tag says what a stream is for, and whose it is. It is written into the stream's metadata.
type Tag struct {
	Owner     Owner
	Role      Role
	Vertex    string // of a buffer, or a consumer
	Partition int    // of a buffer
}

// The keys of the metadata.
const (
	keyNamespace   = "levada.io/namespace"
	keyKind        = "levada.io/kind"
	keyName        = "levada.io/name"
	keyRole        = "levada.io/role"
	keyVertex      = "levada.io/vertex"
	keyPartition   = "levada.io/partition"
	keyIncarnation = "levada.io/incarnation"
)

// String is how errors name it.
func (t Tag) String() string {
	s := t.Owner.String()
	if t.Role == RoleConsumer {
		s += ", vertex " + t.Vertex
	}
	if t.Role == RoleBuffer {
		s += ", vertex " + t.Vertex + ", partition " + strconv.Itoa(t.Partition)
	}
	return s + " (" + string(t.Role) + ")"
}

// In returns metadata with the tag added to it. It leaves the argument as it is. The zero tag, of tests and of old stores, adds nothing.
func (t Tag) In(metadata map[string]string) map[string]string {
	if t == (Tag{}) {
		return metadata
	}
	m := maps.Clone(metadata)
	if m == nil {
		m = map[string]string{}
	}
	m[keyNamespace], m[keyKind], m[keyName], m[keyRole] = t.Owner.Namespace, string(t.Owner.Kind), t.Owner.Name, string(t.Role)
	if t.Owner.Incarnation != "" {
		m[keyIncarnation] = t.Owner.Incarnation
	}
	if t.Vertex != "" {
		m[keyVertex] = t.Vertex
	}
	if t.Role == RoleBuffer {
		m[keyPartition] = strconv.Itoa(t.Partition)
	}
	return m
}

// TagOf reads the tag of a stream's metadata. It returns false if there is none.
func TagOf(metadata map[string]string) (Tag, bool) {
	t := Tag{
		Owner: Owner{Namespace: metadata[keyNamespace], Kind: Kind(metadata[keyKind]), Name: metadata[keyName], Incarnation: metadata[keyIncarnation]},
		Role:  Role(metadata[keyRole]), Vertex: metadata[keyVertex],
	}
	t.Partition, _ = strconv.Atoi(metadata[keyPartition])
	return t, t.Owner.Name != ""
}

// ForeignError means that a stream or bucket has another owner.
type ForeignError struct {
	// Stream is its name, Have what its metadata says, Want what it was to be opened for.
	Stream     string
	Have, Want Tag
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("stream %s belongs to %v, and cannot be used for %v: give one of the two another name, or a broker account of its own", e.Stream, e.Have, e.Want)
}

// Check compares the tag with a stream's metadata. missing says that the stream has none of ours: it is of an old format, and the process that adopts it
// adds the tag. The error is a *ForeignError. The zero tag finds nothing wrong.
func (t Tag) Check(stream string, metadata map[string]string) (missing bool, err error) {
	if t == (Tag{}) {
		return false, nil
	}
	have, ok := TagOf(metadata)
	if !ok {
		return true, nil
	}
	if !have.Owner.Is(t.Owner) || have.Role != t.Role || have.Vertex != t.Vertex || have.Partition != t.Partition {
		return false, &ForeignError{stream, have, t}
	}
	return false, nil
}

// Writer names a sink of a vertex among all that may write into the same place: a stream, a file, a table. role is empty for the primary sink.
func (o Owner) Writer(vertex, role string) string {
	s := o.Namespace + "/" + o.Name + "/"
	if o.Kind == Pipeline {
		s += vertex
	}
	if role != "" {
		s += ":" + role
	}
	return s
}
