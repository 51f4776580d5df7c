/** xz and bzip2: what xz(1) 5.4 and bzip2(1) 1.0 have made of texts that are made here again. */
import { describe, expect, test } from "vitest";
import { decompressBzip2 } from "../../runtime/bzip2.ts";
import { ImageError } from "../../runtime/image-error.ts";
import { decompressXz } from "../../runtime/xz.ts";

type Decompress = (chunks: AsyncIterable<Buffer>, consume: (chunk: Buffer) => void) => Promise<void>;

function* numbers(seed: number): Generator<number, never> {
  for (let state = BigInt(seed); ; ) {
    state = (state * 1_103_515_245n + 12_345n) % 2_147_483_648n;
    yield Number(state >> 16n);
  }
}

function words(count: number): string {
  const known = ["alpha", "beta", "gamma", "delta", "pi", "rho", "sigma", "omega\n"];
  const random = numbers(12_345);
  return Array.from({ length: count }, () => known[random.next().value % 8]).join(" ");
}

function noise(count: number): string {
  const random = numbers(1);
  return Buffer.from(Array.from({ length: count }, () => random.next().value & 0xff)).toString("latin1");
}

function runs(): string {
  return Array.from({ length: 200 }, (_, index) => "ab"[(index * 3) % 2]?.repeat(index * 3)).join("");
}

const xzFiles = [
  [
    "crc32, quickly",
    words(40),
    "/Td6WFoAAAFpIt42AgAhAQwAAACPmEGc4ADQAFNdADgaQA+AURplo41qyRb2fn3i5jhECyGzLjXK8TfnahY6qz3ykcSH1/8eI+o9tjiY7faLv2LsgEU7LDO1pdORomUVvM6EXXv7/Zvhix7HVB7WGtgAAAA0p3bcAAFr0QEAAADIGk+tPjANiwIAAAAAAVla",
  ],
  [
    "crc64",
    words(40),
    "/Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj4ADQAFFdADgaQA+AURplo41qyRb/j4NxR8piLSfQaXsDr68Su9u1gMjPB3fkF7PufQ9ntaXb1Z2YiNwZW1wgQoowLDly67sNpIS08eC791OAOiU3AKpVAAAAAADYrLM99zBdIgABbdEBAAAA1fkWe7HEZ/sCAAAAAARZWg==",
  ],
  [
    "SHA-256",
    words(40),
    "/Td6WFoAAArh+wyhAgAhARYAAAB0L+Wj4ADQAFFdADgaQA+AURplo41qyRb/j4NxR8piLSfQaXsDr68Su9u1gMjPB3fkF7PufQ9ntaXb1Z2YiNwZW1wgQoowLDly67sNpIS08eC791OAOiU3AKpVAAAAAADS4Rf6xRPZYfK2Tr3CzWcDxV0RfSYOZJ1zcHCPyYrI/QABhQHRAQAAzcxiL7bp3xwCAAAAAApZWg==",
  ],
  [
    "no check, other parameters",
    words(400).repeat(300),
    "/Td6WFoAAAD/EtlBAgAhAQAAAAA3J5fW6cl3AfwSADgbEnSWgBcj54jPeVWtvVexiZedrF24oa7awL4IjRl1RVp0SqsloF1cGV2CVv/VyfAHxJuFmxrKwhZWUB2iHfXvv9jQgEhFqjI8WiKgE9oUujr6i3Lug9vdAfoEKCWSLoB/+Z/lU7qMAz65qkE1bmtFHpCteFkkWYcNV1QVbwfhtKgVR+xt5IVCrZZxd1/FAQe0xe87HZIya6cUoL/s2vpVpm1BgHgg0BCK1Lcpo2LK4JCjBNklgfhjuVfA8LYDXeVkQ4xnvC0thOkGGak92piY+AYCcpouZ/mwB7Nb0TUTTKib8fhW39cVXIct4DasEm5ar9OwnJVzD85dBZUXDZlh2R4DxuXYfEq1qq/WiGs7qQIzWDxgYqk4zOg24YnRKkRprnzGFA0lwuf18TPjnb9qvkmrh/cmC7er6PmQoEFzWGba8iv4EU1tF8f4j5T5jBVxB685vrjlAQAJN/BgaYnSb9kn+GX6p2mWCxAdXg5VtAGyXEt3YYI0dLiNoUu/JzkEzGM4wM+Nbh1NJe1tFIdIH6IXBy/3z/fwKcvD13sntgvHDANw3jZgMW5wnqcjX+woy4XRlZiKfiqR8id19xnABphNmP3Yr9WQD8QlU/j1kTYxBaWw7m/BcE1HDNGREaqtYB26zrEnGFxZhulmUli+6XasWeTkzq4duwAAAAGQBPiSJwDthDNMqAAK/AIAAAAAAFla",
  ],
  [
    "several blocks, their sizes told",
    words(400).repeat(300),
    "/Td6WFoAAATm1rRGA8DhA8CaDCEBFgAASHIlVuMNPwHZXQA4GkAPgFEaZaONaskW/4+DcUfKYi0n0Gl7A6+vErvbtYDIzwd35Bez7n0PZ7Wl29WdmIjcGVtcIEKKMCw5cuu7DaSEtPHgu/dTgDolfcypS/oyn7EUGhs6OKldHkMIouHqYAP49BvR/B7sa+k3Ilrtc7Web7T4sN6jEIFyQ/0SjTzGi0S9RToThaOlCAbUVTo89xuKY2E4Hh9d/5KbunwUx2BMAnC5LBMBfgnL9utKm0HPOrEKgF/22wXGcJLpp6PU+hjl28A4A9ompvVV2jfVNVVCgSKnx8VAj8WrIc85JZU5WsiS0v2uuODEa0YhUgau4zUvldNr3pIQaoIzqL9PTkVuw13K+Xjay+g7wf01/lSg03dwOOQ+ieUVGrR5HDlNnBLnQo0e3SPxWugeQ4Q8TU8o26Qq1lHztITROOGj+gINO7Ml+aMtc3TJDvMFF8UdNVT6nzLiuVDcCgvFjj7V1GXEeksrGKxAZlU5VKNukZ2utl50Uar/PPt0uHK12Qf3TqWLnna3IL1CtIqwgHpyPUbr6D71uC/tG43ahdQIGXYiPxz1uL3fRkek3d3JW1sQ1lzG2yew4YWQqn3pV6X1LA0MIfxGWsSFpNgOZW52sScYXFbl/94AAAAAAACLv3/UsHkw+wPA5wPAmgwhARYAAA8CO1vjDT8B310ANIgKEARzwznEl1xJYUuL0h/u657aQ/GRlFLBmgsSnpYyc1lxWWtRAXDQXyL9kz/bHn7JESd9G/yjQbgVQMbE/6T2dR1CpFPadsRoeFOBNJYC0C7B2H/D7Xo1i6F74Idfb+HTkprLhTyh5n27hujIz9eGQFqk+zErkhSYk+k5qaCx//4B3dQd1y5v038gu/9Li4l8NV+DYSmBunrKrqI6oFM6V81mLAibfTIzogJOLTP3IevVlsc2XVvRpBI/SCJuZBzC6wiCuVYIjqESZ34SymMX/aI9wNrjN3TqYHiuAyTvGPBrzQzy1yShPRNXogUvC2gp4nvSN6OgV+EtoUaiCVf1WCMKuaKeoURdmcgDDTQ733MCw2wwxrqRCo3CdLlWg0Bv++666QvC1V3GZG0MkjbasWoNig4xb2X+rO4IntLzQtlDCaPQkVq7bjc+cREKBM2ipyPs5Vb+CYlkXt6uzMFH2plBTU7VgIY0m3DbfWU0keCHLcrEONTR01NycUheioqqSgbREuNnr3AzcfoKhLnFnY9C5BslxjXQ3gy40wPQ8tVopm7njwJh+1cb4Au1a0xEJigHjeEAi/axm90S/Q/qXcYqGsw0dQBENsF47MWzxyU9P3ergxQgsUgUxAAAANCeOyZxfQySA8DdA8CaDCEBFgAA/hDqJOMNPwHVXQAwgoAGMbhZRsUdyW1UAoIgtUEqbm+viFgEUjPGCWxp37lAnCJ49RweRzCUos9R/Ink4ywD918KoIeTrw2yilHaEWnqThdB8PonvfQfkNK5iXM6fTu4Po9Nk9deYVF96mSfQnXKF/8jWQoO25uDtL8IQUkld0YB06ozshxmGxacATVOwCmlJB6+qOTV2yrNbVDzIATPTBDhEjJW5KDdFbVvbH/IaY4bv17UonhgOsXOxnWmQAqwP8vb7JU2uJrjiNZaKD4hRwzDkX9ONfz+hlTilr1fhiVjiy4JfbZvs1ePQ0VrC6+2TE9OhbuSV2JR/uwkR1QazXX924TYfisTA/1dEwzzBTwemQmnJa+w+0DJBTVebV+mprUgVOTpO15n9bCy+SOllBl/Yuth0X/JiIxfgUOpZrkCU2F5rEtdbcEV/i06TBnU7tydOXxyWS388HyXEE1hiZnB6iAhMbcGEQmTnFyvZ5lLJhSQhrmaEmLnapYI3PKLJilXW2MYr/C5h000BUBkgokDVT0Wq0L+DpunTcl111lAcRpy5LaGta/ElXSqVT02FBsyDFLTH0zTui92ALfQDnc4oX/WnVYySNo2FuGs81YajRyonGuz+5owLkpA+0wAAAAAAH/YYPvVf7jCA8DJA7jDAiEBFgAAXXZd+eChtwHBXQA2mEAGMcse2TcIDZsEFGrL+xRWRL19UGjJGD4TlQoVarAEQAcQ9Jc792p3s2UuMxWRQPTVumD+ykCLJxZyC16r9IQ6FwP4VHXqFJW7Kc4HR0IlfMM3S3PdtQ0duWCKs0KZSLKtjPHp68QALskJjWeY26PVr035tFEwoBlR8Q7W9KAH8ZIgzPOowMc7FapQO2ENxzeVRJTbZRdXkxkFTal3dSIi78/iQDqeFGgjiWJf10jrbvARK14hEycs/YgfoQjsqcIXf3F1jcl/nzTZjQy7MZLWi8OWgq6OlC5g6lnx6rayVUb0Cbd8WoxK54u4Y0aVo0ovy0D92FWSSzZYa740TFkqv14Hi1Q0xZvTBJmZvMiXDuYwNiEjztNU9FMMQW88P2kepn5JBeDz2qLj5a5m7YDXe35PmJChs1hbn4B5TUkjZDnkKc7ZkYilqYotQCxCaVEoAJAo4mnt0u68U7qf8a9E259ULlVLjFfJ+c7Z91xdkvFfVnhg/VFIVKnVeWn44FG/bucZ6AMYXg2sj9DhypY7Th78k5j5vf1KQEW7Yq0sIf4jZNKsdIbz3tsXdJ3qJ8bRyESebYFSFbjobq2KAAAAAADs9ZmM+9uLlQAE+QPAmgz/A8CaDPUDwJoM4QO4wwIAAIXsOC2nhvZgBgAAAAAEWVo=",
  ],
  [
    "two streams and zeros between them",
    words(40) + words(400).repeat(300),
    "/Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj4ADQAFFdADgaQA+AURplo41qyRb/j4NxR8piLSfQaXsDr68Su9u1gMjPB3fkF7PufQ9ntaXb1Z2YiNwZW1wgQoowLDly67sNpIS08eC791OAOiU3AKpVAAAAAADYrLM99zBdIgABbdEBAAAA1fkWe7HEZ/sCAAAAAARZWgAAAAAAAAAA/Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj6cl3AhddADgaQA+AURplo41qyRb/j4NxR8piLSfQaXsDr68Su9u1gMjPB3fkF7PufQ9ntaXb1Z2YiNwZW1wgQoowLDly67sNpIS08eC791OAOiV9zKlL+jKfsRQaGzo4qV0eQwii4epgA/j0G9H8Huxr6TciWu1ztZ5vtPiw3qMQgXJD/RKNPMaLRL1FOhOFo6UIBtRVOjz3G4pjYTgeH13/kpu6fBTHYEwCcLksEwF+Ccv260qbQc86sQqAX/bbBcZwkumno9T6GOXbwDgD2iam9VXaN9U1VUKBIqfHxUCPxashzzkllTlayJLS/a644MRrRiFSBq7jNS+V02vekhBqgjOov09ORW7DXcr5eNrL6DvB/TX+VKDTd3A45D6J5RUatHkcOU2cEudCjR7dI/Fa6B5DhDxNTyjbpCrWUfO0hNE44aP6Ag07syX5oy1zdMkO8wUXxR01VPqfMuK5UNwKC8WOPtXUZcR6SysYrEBmVTlUo26Rna62XnRRqv88+3S4crXZB/dOpYuedrcgvUK0irCAenI9RuvoPvW4L+0bjdqF1AgZdiI/HPW4vd9GR6Td3clbWxDWXMbbJ7DhhZCqfelXpfUsDQwh/EZaxIWk2A5lbnaxJxhcWYbpZlJYvul2rFnk5VsFCPnH2q38+1IrdM0eWyBC+d1TPfgpZAk7gMsqbN+1O/DEvS5fqg8+S2ZCkBMO/xCTYHUG1QAAADEBqWn3o6tjAAGzBPiSJwB18wvNscRn+wIAAAAABFla",
  ],
  [
    "what cannot be compressed",
    noise(500),
    "/Td6WFoAAATm1rRGAgAhARYAAAB0L+WjAQHzxn6Ba0v74vtU9r3ffBzhhwG/Md5Wcg9HZ2aHWaqIPFnqVhN70oWh2DxUVS83rmVb2gJ5mMzjGnaOX9mZjx8/Nu5DeE0N+r6m2uSGjtwpbU7/VuFwIPuPsVgFkMUJ3FPNqjtImVLTUp0Gn+q1wgYTmEmyAR6sMogxnFJGlXE2j1f2OR0W+oh09Zh8F1xBu21xjg9wWccBGy8zPZHAHaUNDaszjX5ejz7maHSmOrHDkxGoZMfbyuBg4fO/CQBnouMloCExh9VixahPfi4Ja5SfsG2pnloLRnCAts9HDKalKtis+6Drt3kkciOSSIDFpqeFt9eMkOSrY0RSZuOcMyX5Xqq6c2BdS3F+vqmMVxlxw8pe5SozrIhRZqF7dWdkmmnvb1ZCoB1RxQL3u5JFvm8NtjjMEP27VFEceweUJ5N9ksPUxqVhUQE4OKe/8QQNFZuAH4PVpGmIfJ+2AdqTF0WLErICM1xQ1uFWpK1CSlzdhmHpAxLhD5vqJixh3GJIa20U4AOFSnJG2pbIfRzRBT7lknBDX2wDBbPrsyA1TX5mUAE2wDPhD8k4LukpGU9esdFJiztT/Z8/7iUlNXsNEa9MEYwy1Np/2BZX4abOfcGuYr8T5IdMOsGzDFmZR1havXh8ulAB7RvqikmI7tYUhauwLN41kxEAVsIAX12iuQwAAYwE9AMAABeZ5VSxxGf7AgAAAAAEWVo=",
  ],
  ["nothing", "", "/Td6WFoAAATm1rRGAAAAABzfRCEftvN9AQAAAAAEWVo="],
] as const;

const bzip2Files = [
  [
    "a block",
    words(40),
    "QlpoOTFBWSZTWSx5O9kAAF7RgAAQQAA25twAIABwUwAE0ERRQ08pmpUN0sh9xZJBxKYsCymITpeftksJaFlp0GRg5XQaNrkdPYeLF49h7DWmQk8XI9rpeBHkRp0Q/i7kinChIFjyd7I=",
  ],
  [
    "several blocks",
    words(100).repeat(400),
    "QlpoMTFBWSZTWcHC1GIAr6LRgAAQQAA25twAUAN+AD0CKSKYACaFMABNCmAAmgUpUaaHoTQKSSqD1AHUSo0C+QLpCNAv0gvIL0C0C0C9AtQRyC0gXQLQL0C8guoFoF6BegXkFyC0C5BZBZBZBZBYhHoFqQL0CygXQLQLegXQLQLoF6BcgtAvQLQL0C9QLkF5BYRV0CyCyCyC6BdAsoF5BZQq0CyhVoFoFvlEqO6BcoLIFkCyBcIF0C6BaBcgugWoFyC0C5BcQWgWgWQLQLUC5BdEI6QLUC5BaBdAugWIR0CyCyBdAsgXxUKvoiEdAupSqtRKjRQLVUVHFEqNkQjiqCOlQq/SRJkUUu6oI6VCrcoFohGqgWkCyCyBZBaBagWIFhAv1EqNkQjmSJNUSo7VCrAlRvtAupJKeQX3gWgWoIxCNIFoFiEZBZAsQX8xQVkmU1kn8Rk+AI1FUYAAEEAANubcAFADfgAAeJQUwAE0KYACaFMABNApVCaaP1EYFJJUho0DoSoyC+YFxCMgvqBegXkFoFkF5BaQjoFlAuQWQXoF6BdQLQLyC8gvQLoF7kF6BaBaBaBaBYhHQLUgXoFpAugWQXoFkFkFyC8gugWgXkFoF6BeQLoF6BaQq5BaBaBaBdAuQWkC9AsIq0C1QqyCyC+YSo/1Av3AsgsgsgvqgXQLkFkF0C5BagXQLILoFyBaBZBagWQWQLoFwhHVAsgXQLQLkFyCxCOQWgWILoFqBfKoVfFUEdAugqq0JUYUCySVHMJUeqoI5RCPyoVf0RJpUil2iEdKhV7pAsIRkgWQXYhHQLUC0C0CyBYgsoF/YSo+KoI6REmQlR2qFWiJUegWEkp0C/CCyCyhGIRpAsgtIRoFqBaBf8xQVkmU1m0YiY2AAlZUYAAEEAANubcAEAB+DoiopgAJoUwAE0E1JKoMmgBSlJoaeiNOolk+I4Vk+k8nk0ZPJqlyZJyZPR5OkyeTyeTkycmTJkyapejST0ZJyZPRkycnk5NHk0ejxOTyYquTJkydHJkl4liDJZQZLJcFJ2l0mTJk+idHJk5OTScmTk6TRkxMmJycFdSYnJo5OTVLkyaToxOCDN6qMlsSGFJoS0UnJSb1Uc1UfSD9FTAq7qo6IPRLMJaE0SwllMTJoxNJon9ol9gV+0qaKTsgxUniWShbS9yyYVqlomTCsmJk/4u5IpwoSH5FouCA",
  ],
  [
    "two streams",
    words(40) + noise(500),
    "QlpoOTFBWSZTWSx5O9kAAF7RgAAQQAA25twAIABwUwAE0ERRQ08pmpUN0sh9xZJBxKYsCymITpeftksJaFlp0GRg5XQaNrkdPYeLF49h7DWmQk8XI9rpeBHkRp0Q/i7kinChIFjyd7JCWmg5MUFZJlNZEWAUygAAzf///67/v++1u/+//////+7/b+vf/3/3//ub+/e///87q7qwAXsY2ZANAAAAAAA0GgAAAyBoBo0AABkAAAAaMgAGhpkBoPUaaAYjQ9QMgaaAIANGgBoHqADQA0GjQNABoAA0ABoZAAAGg0DQAAaGmgaAA000AAAaGgaPREA9Q9INB6mgAAGgAGQAAANANAAABoAyGIAAAAANAA0ADQANMjQB6gaAl8t7fCJZAA6C8wcM+5gel7eAR2RqNIag7JQ1NZox9NbGjzijr0E+txUuLFdJIHrFhSQyd8xBxptwg0twBMS8YCSOt3XxEp8gcKCfL3aI4xgjoutkMdk3CmkOg9wcvy4BvCD0oXpRA0N+bbqYFilYONED9knvvLaIwR+nLXLh3bE1iBK8vJbBIvhlTRDRs4urMleRczMhjjxd/4LMEBzXoKVETjvNHxhITzUBFdbk41UaQl1ytEaCW8Mqn17GayOBkNHJbbDBFBEqYQBfwvg10cWxigQVq5je35DRYkqY3Q4eUJhRBcOPJNwINaUjzZMWeTBXkQOvnVlnLMkDEhXeozfMr4Hj4VCoi3DaDv3sMz5lDLHTwtb75AYCYG3tN0w5gjr+zq1GucSICPH5rdzef8TcbtNc2x/xUAuPKMIYhSDBQ4jBnLnmfZ5CLADQJQNYauF4CMuGbRBmhNVnXJsS9GxH67PwgIwghC4NiOHezYHQsad0dqMDiYRZ/ikdYEzoCYHBaRn8MjDwqmOuZqqDWEIFnCwJn6Igkem+BAZJgMdzcLd3issTrc9+hfaRXvYvL+56Zo6NwigUBU+rgUbijhxg8n7DtzZCeA4sel4JU+bvc99PH/8XckU4UJARYBTK",
  ],
  [
    "runs of all lengths",
    runs(),
    "QlpoOTFBWSZTWTMYPXcAAcn//5JJJJJJJJJJJJJJJLJJJJJJJJJJJJJJJJJJJJJJJJJIMAGYUUHP9VDQGgAA0AAAAP1IAAAB/qocaMmRhGIBhNBgE0GgZMmjJkMIDDU/1VUgAGgGgDQAZAA//VVAAAAfqfqpr68QRBEEQRBEEQRBEEQRBEEQRABjExJGZt03KbtN6m/TgpqpxE4ychNZOWnNTnui6Tpuq67su22Xdd94XjeVXoep7HufB8n0fZ+H6fx/m02GyLYuC6LwvjAMIxDGMgyhF8y+fRp1a9m3dv4ceXPp17d/Hn17+fdrW0000000000000z2pkmJMYxNWSTEmW2lSpUqVKlSpUqVKlSpV4epxdTUqqqqqqqqqqqqqqqq2HMVVUIECBAgQIECBCSSSSSSSSSSSSTKJznOc5znOc50mJMYxKAAAAAAAAAAAAAAAATGJIRJMSP+LuSKcKEgZjB67g==",
  ],
  ["nothing", "", "QlpoORdyRThQkAAAAAA="],
] as const;

/** @param size Of the pieces that it comes in. */
async function decompressed(decompress: Decompress, file: Buffer, size = 1 << 20): Promise<string> {
  const pieces: Buffer[] = [];
  const piece = Buffer.alloc(size);
  async function* chunks() {
    for (let at = 0; at < file.length; at += size) {
      // Each is overwritten by the next one.
      yield await Promise.resolve(piece.subarray(0, file.copy(piece, 0, at, at + size)));
    }
  }
  await decompress(chunks(), (chunk) => void pieces.push(Buffer.from(chunk)));
  return Buffer.concat(pieces).toString("latin1");
}

function rowsOf(files: readonly (readonly [string, string, string])[]): [string, string, string][] {
  return files.map(([name, content, base64]) => [name, content, base64]);
}

const formats = [
  { name: "decompressXz", decompress: decompressXz, files: rowsOf(xzFiles) },
  { name: "decompressBzip2", decompress: decompressBzip2, files: rowsOf(bzip2Files) },
];

describe.for(formats)("$name", ({ decompress, files }) => {
  test.for(files)("reads %s", async ([, content, base64]) => {
    const file = Buffer.from(base64, "base64");
    for (const size of [1, 7, 1 << 20]) expect(await decompressed(decompress, file, size)).toBe(content);
  });

  test("refuses what is cut off anywhere, and what is changed anywhere", async () => {
    const [, content = "", base64 = ""] = files[0] ?? [];
    const file = Buffer.from(base64, "base64");
    for (let at = 0; at < file.length; at++) {
      await expect(decompressed(decompress, file.subarray(0, at))).rejects.toBeInstanceOf(ImageError);
      const changed = Buffer.from(file);
      changed[at] = (changed[at] as number) ^ 0x10;
      const outcome = await decompressed(decompress, changed).catch((error: unknown) => error);
      // Some bits mean nothing: those that fill the last byte up, and codes that are not used.
      expect(outcome === content || outcome instanceof ImageError, `byte ${at}`).toBe(true);
    }
  });
});

test("decompressXz refuses to take as much memory as a header asks for", async () => {
  const block = Buffer.from([0x02, 0x00, 0x21, 0x01, 40, 0, 0, 0]);
  const header = Buffer.from(xzFiles[0][2], "base64").subarray(0, 12);
  const { crc32 } = await import("node:zlib");
  const checksum = Buffer.alloc(4);
  checksum.writeUInt32LE(crc32(block));
  await expect(decompressed(decompressXz, Buffer.concat([header, block, checksum]))).rejects.toThrow("needs 4");
});
