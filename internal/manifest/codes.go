package manifest

import "slices"

// Code names a kind of problem. It never changes its meaning, and is never used again for another.
type Code string

// The codes, by subject: 10 reading, 11 names and annotations, 12 the graph, 13 vertices, 14 sources, 15 sinks, 16 functions,
// 17 limits, 18 schedules, 19 buffer services, 20 the other kinds, 21 updates, 22 and 23 what the engine does not do yet.
const (
	CodeSyntax          Code = "LV1001"
	CodeTooLarge        Code = "LV1002"
	CodeTooDeep         Code = "LV1003"
	CodeAliases         Code = "LV1004"
	CodeDuplicateField  Code = "LV1005"
	CodeNotAnObject     Code = "LV1006"
	CodeAPIVersion      Code = "LV1007"
	CodeUnknownKind     Code = "LV1008"
	CodeOtherKind       Code = "LV1009"
	CodeUnknownField    Code = "LV1010"
	CodeWrongType       Code = "LV1011"
	CodeRequired        Code = "LV1012"
	CodeEnum            Code = "LV1013"
	CodeNumber          Code = "LV1014"
	CodeDuration        Code = "LV1015"
	CodeExclusive       Code = "LV1016"
	CodeNoEffect        Code = "LV1017"
	CodeDeprecated      Code = "LV1018"
	CodeAddress         Code = "LV1019"
	CodeTooManyProblems Code = "LV1020"
	CodeNoManifest      Code = "LV1021"
	CodeUnreadable      Code = "LV1022"

	CodeName              Code = "LV1101"
	CodeNamesTooLong      Code = "LV1102"
	CodeNamesake          Code = "LV1103"
	CodeUnknownAnnotation Code = "LV1110"
	CodeAnnotationVertex  Code = "LV1111"
	CodeAnnotationRole    Code = "LV1112"
	CodeAnnotationValue   Code = "LV1113"
	CodeAnnotationLength  Code = "LV1114"

	CodeNoSourceOrSink Code = "LV1201"
	CodeVertexTwice    Code = "LV1202"
	CodeEdgeToNowhere  Code = "LV1203"
	CodeEdgeTwice      Code = "LV1204"
	CodeVertexAlone    Code = "LV1205"
	CodeEdgeDirection  Code = "LV1206"
	CodeNotConnected   Code = "LV1207"
	CodeReduceInCycle  Code = "LV1208"
	CodeNoEdges        Code = "LV1209"
	CodeNoTags         Code = "LV1210"
	CodeOperator       Code = "LV1211"
	CodeOnFull         Code = "LV1212"

	CodeVertexRole     Code = "LV1301"
	CodeScaleBounds    Code = "LV1302"
	CodeScaleNumber    Code = "LV1303"
	CodeCronPlace      Code = "LV1304"
	CodePartitions     Code = "LV1305"
	CodeUpdateStrategy Code = "LV1306"
	CodeContainerName  Code = "LV1307"
	CodeSourceSidecars Code = "LV1308"
	CodeOrderedScale   Code = "LV1309"

	CodeSourceType    Code = "LV1401"
	CodeGenerator     Code = "LV1402"
	CodeBase64        Code = "LV1403"
	CodeNatsURL       Code = "LV1404"
	CodeDeliverPolicy Code = "LV1405"
	CodePort          Code = "LV1406"
	CodeServing       Code = "LV1407"
	CodeSqs           Code = "LV1408"
	CodeAssumeRole    Code = "LV1409"
	CodeKafka         Code = "LV1410"
	CodeConsumerGroup Code = "LV1411"
	CodeSASL          Code = "LV1412"
	CodeTLS           Code = "LV1413"
	CodeSubject       Code = "LV1414"
	CodeStreamTarget  Code = "LV1415"
	CodeDelimiter     Code = "LV1416"

	CodeSinkType  Code = "LV1501"
	CodeFallback  Code = "LV1502"
	CodeBackoff   Code = "LV1503"
	CodeStreamLog Code = "LV1504"
	CodeRotation  Code = "LV1505"

	CodeNothingToRun        Code = "LV1601"
	CodeContainerAndBuiltin Code = "LV1602"
	CodeExpression          Code = "LV1603"
	CodeWindow              Code = "LV1610"
	CodeWindowLength        Code = "LV1611"
	CodeStorage             Code = "LV1612"
	CodeReduceRetry         Code = "LV1613"
	CodeSlideGaps           Code = "LV1614"

	CodeLimits      Code = "LV1701"
	CodeRateLimit   Code = "LV1702"
	CodeRateBounds  Code = "LV1703"
	CodeRateModes   Code = "LV1704"
	CodeRateStore   Code = "LV1705"
	CodeCompression Code = "LV1706"
	CodeIdleSource  Code = "LV1707"

	CodeSchedule         Code = "LV1801"
	CodeTimezone         Code = "LV1802"
	CodeSideInputTwice   Code = "LV1803"
	CodeSideInputUnknown Code = "LV1804"
	CodeCronScale        Code = "LV1805"

	CodeNoJetStream      Code = "LV1901"
	CodeJetStreamVersion Code = "LV1902"
	CodeISBReplicas      Code = "LV1903"
	CodeBufferConfig     Code = "LV1904"
	CodeISBSettings      Code = "LV1905"
	CodeISBUnknown       Code = "LV1906"
	CodeRedisService     Code = "LV1907"
	CodeRetention        Code = "LV1910"
	CodeMaxAge           Code = "LV1911"
	CodeMemoryStorage    Code = "LV1912"
	CodeDiscardOld       Code = "LV1913"
	CodeISBOneServer     Code = "LV1914"
	CodeISBOneMachine    Code = "LV1915"
	CodeDuplicates       Code = "LV1916"
	CodeISBNoVolume      Code = "LV1917"
	CodeStreamReplicas   Code = "LV1918"

	CodeMonoVertexEnds      Code = "LV2001"
	CodeMonoVertexReduce    Code = "LV2002"
	CodeMonoVertexStreaming Code = "LV2003"
	CodeBypass              Code = "LV2004"

	CodeImmutable         Code = "LV2101"
	CodeImmutableInstance Code = "LV2102"
	CodeImmutableVertex   Code = "LV2103"
	CodeImmutableReduce   Code = "LV2104"
	CodeImmutableISB      Code = "LV2105"

	CodeIgnoresScale          Code = "LV2201"
	CodeIgnoresWatermark      Code = "LV2202"
	CodeIgnoresSideInputs     Code = "LV2203"
	CodeIgnoresUpdateStrategy Code = "LV2204"
	CodeIgnoresRedisRateLimit Code = "LV2205"
	CodeIgnoresTemplates      Code = "LV2206"
	CodeIgnoresContainer      Code = "LV2207"
	CodeIgnoresNativeRedis    Code = "LV2208"

	CodeNoReduce Code = "LV2301"
	CodeNoSource Code = "LV2302"
	CodeNoSink   Code = "LV2303"
	CodeNoStart  Code = "LV2304"
)

// Explanation says more about a Code than a Problem has room for.
//
// +kubebuilder:object:generate=false
type Explanation struct {
	Code     Code     `json:"code"`
	Severity Severity `json:"severity"`
	Title    string   `json:"title"`
	// Text says what is behind it, and what to do.
	Text string `json:"text"`
	// Wrong and Right are pieces of a manifest.
	Wrong string `json:"wrong"`
	Right string `json:"right"`
}

// Catalogue has every code, in order.
func Catalogue() []Explanation { return slices.Clone(catalogue) }

// Explain says more about a code. It is false when there is no such code.
func Explain(code Code) (Explanation, bool) {
	i := slices.IndexFunc(catalogue, func(e Explanation) bool { return e.Code == code })
	if i < 0 {
		return Explanation{}, false
	}
	return catalogue[i], true
}

// SuggestCode is the code that was probably meant.
func SuggestCode(word string) string {
	codes := make([]string, len(catalogue))
	for i, e := range catalogue {
		codes[i] = string(e.Code)
	}
	return suggest(word, codes)
}

func (c Code) severity() Severity {
	e, _ := Explain(c)
	return e.Severity
}
