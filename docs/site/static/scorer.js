// The order of what a search finds: pages for users first, the reference and the project's own pages last.
const OF_THE_PROJECT = /^(api-|evidence-|public-reports|features|architecture|versions|cli-peers|gateway-peers)/;
const LOOKED_UP = /^(settings|errors|troubleshooting)$/;

Scorer = {
  score: ([page, title, anchor, description, score]) =>
    score + (OF_THE_PROJECT.test(page) ? -20 : 0) + (LOOKED_UP.test(page) ? 3 : 0),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
